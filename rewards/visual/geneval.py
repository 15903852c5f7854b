"""GenEval: are the asked objects there, in number, colour and place? The rule alone, of what a detector found.

Source: Ghosh et al. 2023 (arXiv 2310.11513), djghosh13/geneval `evaluate_images.py`. A row asks for
`include: [{class, count, color?, position?: [relation, index of an earlier clause]}]` and `exclude: [{class, count}]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

Box = tuple[float, float, float, float]
Relation = Literal["left of", "right of", "above", "below"]
POSITION_THRESHOLD = 0.1


class Found(NamedTuple):
    """An object: its box (x0, y0, x1, y1) in pixels, and its colour where one was asked for."""

    box: Box
    color: str | None = None


@dataclass(frozen=True)
class Verdict:
    """`correct`: the benchmark's rule (at least n, and the excludes). `strict`: exactly n. `score`: the share of checks that
    hold, each between 0 and 1. `reasons`: one line per check that the benchmark fails."""

    correct: bool
    strict: bool
    score: float
    reasons: tuple[str, ...]


def iou(a: Box, b: Box) -> float:
    """Intersection over union of boxes whose last pixel is inside (as GenEval counts them)."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]) + 1, 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]) + 1, 0)
    both = width * height
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return both / (sum(areas) - both)


def relations(a: Box, b: Box, threshold: float = POSITION_THRESHOLD) -> set[Relation]:
    """How `a` lies to `b`: the centre offset, less `threshold` times both sizes, as a share of its length must be above 0.5."""
    first, second = np.array(a, dtype=float).reshape(2, 2), np.array(b, dtype=float).reshape(2, 2)
    offset = first.mean(0) - second.mean(0)
    sizes = np.abs(np.diff(first, axis=0) + np.diff(second, axis=0))[0]
    left = np.maximum(np.abs(offset) - threshold * sizes, 0) * np.sign(offset)
    if (np.abs(left) < 1e-3).all():
        return set()
    dx, dy = left / np.linalg.norm(offset)
    names: tuple[tuple[bool, Relation], ...] = (
        (dx < -0.5, "left of"),
        (dx > 0.5, "right of"),
        (dy < -0.5, "above"),
        (dy > 0.5, "below"),
    )
    return {name for holds, name in names if holds}


def judge(found: Mapping[str, Sequence[Found]], row: Mapping[str, Any]) -> Verdict:
    """The verdict on what was `found` (class -> objects, the surest first) for a metadata `row`."""
    correct = strict = True
    reasons: list[str] = []
    checks: list[float] = []
    matched: list[Sequence[Found] | None] = []
    for clause in row.get("include", ()):
        kind, count = str(clause["class"]), int(clause["count"])
        every = list(found.get(kind, ()))
        surest = every[:count]
        checks.append(_closeness(count, len(every)))
        held = len(surest) == count
        strict &= len(every) == count
        if not held:
            reasons.append(f"expected {kind}>={count}, found {len(surest)}")
        color = clause.get("color")
        if color is not None:
            checks.append(_closeness(count, sum(one.color == color for one in every)) if held else 0.0)
            if held and sum(one.color == color for one in surest) < count:
                held = False
                named = "; and ".join(_colours(surest, color))
                reasons.append(f"expected {color} {kind}>={count}, found {named}")
            strict &= held and all(one.color == color for one in every)
        if clause.get("position") is not None:
            relation, index = clause["position"]
            target = matched[index] if index < len(matched) else None
            good = held and target is not None and _all_lie(surest, target, relation)
            checks.append(float(good))
            if held and target is None:
                reasons.append(f"no target for {kind} to be {relation}")
            elif held and not good:
                reasons.append(f"expected {kind} {relation} target")
            held = held and good
        matched.append(surest if held else None)
        correct &= held
        strict &= held
    for clause in row.get("exclude", ()):
        kind, count = str(clause["class"]), int(clause["count"])
        number = len(found.get(kind, ()))
        checks.append(float(number < count))
        if number >= count:
            correct = strict = False
            reasons.append(f"expected {kind}<{count}, found {number}")
    if not checks:
        raise ValueError("a GenEval row needs `include` or `exclude`")
    return Verdict(correct, strict, float(np.mean(checks)), tuple(reasons))


def _closeness(wanted: int, got: int) -> float:
    return max(0.0, 1 - abs(wanted - got) / wanted)


def _all_lie(objects: Sequence[Found], targets: Sequence[Found], relation: str) -> bool:
    return all(relation in relations(a.box, b.box) for a in objects for b in targets)


def _colours(objects: Sequence[Found], wanted: str) -> list[str]:
    """How many objects have the wanted colour, then how many each other."""
    counts = {wanted: 0} | {str(one.color): 0 for one in objects}
    for one in objects:
        counts[str(one.color)] += 1
    return [f"{number} {name}" for name, number in counts.items()]
