"""The caption grammar of the shapes world: 36 counts and 264 relations.

    count     "one red circle", "two red circles", "three red circles"
    relation  "a blue square left of a green triangle", "a blue square above a green triangle"

A caption means a target: a JSON-able dict, read by the verifier.

    {"kind": "count", "color": "red", "shape": "circle", "count": 2}
    {"kind": "relation", "a": {"color": ..., "shape": ...}, "relation": "left of", "b": {"color": ..., "shape": ...}}
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np

from mmrl.data.shapes.parts import stratified
from mmrl.data.shapes.world import BOARD, COLORS, GLYPHS, SHAPES, Item, Scene, room

Target = dict[str, Any]

COUNTS: dict[str, int] = {"one": 1, "two": 2, "three": 3}
RELATIONS: tuple[str, ...] = ("left of", "above")

_COUNT = re.compile(rf"({'|'.join(COUNTS)}) ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})(s?)")
_THING = rf"a ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})"
_RELATION = re.compile(rf"{_THING} ({'|'.join(RELATIONS)}) {_THING}")


def parse(caption: str) -> Target:
    """The target of a caption; a ValueError for anything outside the grammar."""
    if match := _COUNT.fullmatch(caption):
        word, color, shape, plural = match.groups()
        if (plural == "s") == (COUNTS[word] > 1):
            return {"kind": "count", "color": color, "shape": shape, "count": COUNTS[word]}
    elif match := _RELATION.fullmatch(caption):
        color_a, shape_a, relation, color_b, shape_b = match.groups()
        if (color_a, shape_a) != (color_b, shape_b):
            a, b = {"color": color_a, "shape": shape_a}, {"color": color_b, "shape": shape_b}
            return {"kind": "relation", "a": a, "relation": relation, "b": b}
    raise ValueError(f"not a caption of the shapes world: {caption!r}")


def write(target: Target) -> str:
    """The caption of a target; `parse` is its inverse."""
    if target["kind"] == "count":
        word = {number: word for word, number in COUNTS.items()}[target["count"]]
        return f"{word} {target['color']} {target['shape']}{'s' if target['count'] > 1 else ''}"
    a, b = (f"a {target[side]['color']} {target[side]['shape']}" for side in "ab")
    return f"{a} {target['relation']} {b}"


def captions(kind: str | None = None) -> list[str]:
    """All 300 captions in a fixed order, or those of one kind ("count" or "relation")."""
    things = [{"color": color, "shape": shape} for color, shape in itertools.product(COLORS, SHAPES)]
    found: list[str] = []
    if kind in (None, "count"):
        found += [write({"kind": "count", **thing, "count": n}) for thing in things for n in COUNTS.values()]
    if kind in (None, "relation"):
        found += [
            write({"kind": "relation", "a": a, "relation": relation, "b": b})
            for a, b in itertools.permutations(things, 2)
            for relation in RELATIONS
        ]
    return found


def split(seed: int, held_out: float = 0.2) -> dict[str, list[str]]:
    """Captions of the "train" and "held_out" parts: disjoint, the same share of each kind, a function of the seed."""
    return stratified([captions(kind) for kind in ("count", "relation")], seed, held_out)


def wanted(target: Target) -> list[tuple[str, str]]:
    """The (colour, shape) of every object that a target asks for; in a relation a comes before b."""
    if target["kind"] == "count":
        return [(target["color"], target["shape"])] * target["count"]
    return [(target[side]["color"], target[side]["shape"]) for side in "ab"]


def sample_scene(target: Target, rng: np.random.Generator) -> Scene:
    """A random scene that satisfies a target and shows nothing else; objects stay at least 1 px apart.

    The two objects of a relation share a row ("left of") or a column ("above"). The verifier does not ask for that.
    """
    things = wanted(target)
    while True:
        cells = rng.choice(BOARD * BOARD, size=len(things), replace=False)
        if target["kind"] == "relation":
            along, across = cells % BOARD, cells // BOARD
            if target["relation"] == "above":
                along, across = across, along
            if along[0] >= along[1] or across[0] != across[1]:
                continue
        items = []
        for (color, shape), cell in zip(things, cells, strict=True):
            dx, dy = rng.integers(0, room(shape) + 1, size=2)
            items.append(Item(color, shape, int(cell), int(dx), int(dy)))
        if not any(touch(p, q) for p, q in itertools.combinations(items, 2)):
            return Scene(tuple(items))


def touch(p: Item, q: Item) -> bool:
    """Whether the bounding boxes of two objects have no free pixel between them."""
    gap_x = max(q.left - p.left - GLYPHS[p.shape].shape[1], p.left - q.left - GLYPHS[q.shape].shape[1])
    gap_y = max(q.top - p.top - GLYPHS[p.shape].shape[0], p.top - q.top - GLYPHS[q.shape].shape[0])
    return max(gap_x, gap_y) < 1
