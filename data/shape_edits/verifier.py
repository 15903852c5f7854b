"""Whether a picture shows what was asked for, and still shows the rest of its source.

Two judgements in [0, 1], each 1 only for a right picture:

    change  the asked change has happened
    rest    every other object of the source is where it was (within 2 px), and nothing else has appeared
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmrl.data.shape_edits.edits import Edit
from mmrl.data.shapes.verifier import MIN_OFFSET, Found
from mmrl.data.shapes.world import GLYPHS, Item, Scene

NEAR = 2.0
"""Pixels, in x and in y, that the centre of an object may be off its place."""
CHANGE = 0.5
"""Share of the change in the dense score."""
PART = 0.5
"""Credit for an object in another place than it should be, or of the right colour or shape alone."""


@dataclass(frozen=True)
class Judgement:
    """`change` and `rest` in [0, 1]."""

    change: float
    rest: float

    @property
    def right(self) -> bool:
        return min(self.change, self.rest) > 1 - 1e-9

    @property
    def dense(self) -> float:
        return CHANGE * self.change + (1 - CHANGE) * self.rest


def judge(found: Sequence[Found], edit: Edit, before: Scene) -> Judgement:
    """The judgement of a picture in which `found` was found.

    Objects that should have stayed are paired first, the nearest of the same colour and shape; then the one that fits the
    change best; what is left over should not be there.
    """
    (subject,) = [item for item in before.items if item.shape == edit.subject]
    kept = [item for item in before.items if item is not subject or edit.kind in ("add", "insert")]
    free, credit = list(found), 0.0
    for item in kept:
        same = [other for other in free if (other.color, other.shape) == (item.color, item.shape)]
        if same:
            nearest = min(same, key=lambda other: float(np.abs(_offset(item, other)).max()))
            free.remove(nearest)
            credit += 1.0 if _at(item, nearest) else PART
    change, used = _change(free, edit, subject)
    return Judgement(change, credit / (len(kept) + len(free) - used))


def _change(free: Sequence[Found], edit: Edit, subject: Item) -> tuple[float, int]:
    """How well the change has happened, and how many of the free objects belong to it."""
    if edit.kind == "remove":
        left = any((item.color, item.shape) == (subject.color, subject.shape) for item in free)
        return float(not left), int(left)
    scores = [_fit(item, edit, subject) for item in free]
    return max(scores, default=0.0), int(
        any(score > 0 or _at(subject, i) for score, i in zip(scores, free, strict=True))
    )


def _fit(item: Found, edit: Edit, subject: Item) -> float:
    """How far one object is what the change should have brought about."""
    shape = edit.shape or edit.subject
    color = edit.color or subject.color
    looks = (item.color == color) + (item.shape == shape)
    if edit.kind == "recolor":
        return looks / 2 * (1.0 if _at(subject, item) else PART) if item.color == color else 0.0
    offset = _offset(subject, item)
    along, across = float(offset @ edit.step), float(abs(offset @ edit.step[::-1]))
    if edit.kind == "move":
        there = min(max(along / MIN_OFFSET, 0.0), 1.0) * (1.0 if across <= NEAR else PART)
        return there if looks == 2 else 0.0
    return PART ** (2 - looks) * (1.0 if along >= MIN_OFFSET else PART) if looks else 0.0


def _offset(item: Item, seen: Found) -> np.ndarray:
    """From the centre of a drawn object to that of one that was found, `(2,)`."""
    height, width = GLYPHS[item.shape].shape
    return np.array([seen.x - item.left - (width - 1) / 2, seen.y - item.top - (height - 1) / 2])


def _at(item: Item, seen: Found) -> bool:
    return bool((np.abs(_offset(item, seen)) <= NEAR).all())
