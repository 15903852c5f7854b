"""Sub-questions about what a picture shows, each with a target that the verifier of a puzzle kind reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmrl.data.puzzles.draw import COLORS, SHAPES

Look = tuple[str, str]
"""Colour and shape of a thing."""


def counted(asked: str, count: int, most: int) -> dict[str, Any]:
    """How many things there are, as a sub-question with the target of `count_shapes`."""
    target = {"kind": "count_shapes", "answer": str(count), "puzzle": {"count": count, "most": most}}
    return {"question": f"How many {asked} are in the picture? Give a number.", "answer": target}


def there(look: Look, looks: Sequence[Look]) -> dict[str, Any]:
    """Whether a thing is in the picture, as a sub-question with the target of `relation`."""
    answer = "yes" if look in looks else "no"
    target = {"kind": "relation", "answer": answer, "puzzle": {"answer": answer, "choices": ["yes", "no"]}}
    return {"question": f"Is there a {' '.join(look)} in the picture? Answer yes or no.", "answer": target}


def plural(shape: str) -> str:
    """ "circles", "crosses"."""
    return f"{shape}{'es' if shape == 'cross' else 's'}"


def checklist(
    looks: Sequence[Look], color: str, shape: str | None, most: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """What one must see to count the things of a `color` and a `shape` (None: of any), `looks` being all things of the picture (at most
    `most`): how many there are, how many have the colour and how many the shape, and whether each of two things is there.

    Of these two one is in the picture and the other is not; `rng` says which they are and which comes first.
    """
    questions = [counted("things", len(looks), most)]
    if shape is not None:
        questions += [
            counted(f"{color} things", sum(look[0] == color for look in looks), most),
            counted(plural(shape), sum(look[1] == shape for look in looks), most),
        ]
    every = [(one, other) for one in COLORS for other in SHAPES]
    absent = [look for look in every if look not in looks]
    pair = [there(found[int(rng.integers(len(found)))], looks) for found in (sorted(set(looks)), absent) if found]
    return questions + [pair[place] for place in rng.permutation(len(pair))]
