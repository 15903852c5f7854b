"""What moves in a video, and does it fit the caption.

Every frame is looked at like a picture of the shapes world; an object is followed by its colour and shape. Two judgements,
each 1 only for a right video:

    content  mean over frames: the things of the caption and no others (partial credit as for pictures)
    motion   what moves goes at least 6 px its way, evenly and straight; what stays, stays; both start where the first frame
             had them, where it is given
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmrl.data.moving_shapes.captions import DIRECTIONS, Target, wanted
from mmrl.data.shapes.verifier import Found, pairing

MIN_TRAVEL = 6.0
"""Pixels from the first to the last frame."""
DRIFT = 2.0
"""Pixels that the centre of an object may be off its line, its place or its start."""
BACK = 1.0
"""Pixels that an object may go back between two frames, and go further than twice its mean step."""
MOTION = 0.5
"""Share of the motion in the dense score."""


@dataclass(frozen=True)
class Judgement:
    """`content` and `motion` in [0, 1]."""

    content: float
    motion: float

    @property
    def right(self) -> bool:
        return min(self.content, self.motion) > 1 - 1e-9

    @property
    def dense(self) -> float:
        return (1 - MOTION) * self.content + MOTION * self.motion


def judge(frames: Sequence[Sequence[Found]], target: Target) -> Judgement:
    """The judgement of a video, of whose T >= 2 frames `frames` says what is in each."""
    things = wanted(target)
    seen = [pairing(found, things) for found in frames]
    ways = np.full((len(things), len(frames), 2), np.nan)
    for k, (_, pair) in enumerate(seen):
        for index, item in pair.items():
            ways[index, k] = item.x, item.y
    motion = moves(ways[0], np.array(DIRECTIONS[target["direction"]]))
    for way in ways[1:]:
        motion *= stays(way)
    for way, start in zip(ways, target.get("start", ()), strict=False):
        motion *= float((np.abs(way[0] - start) <= DRIFT).all())
    return Judgement(float(np.mean([credit for credit, _ in seen])), motion)


def moves(way: np.ndarray, step: np.ndarray) -> float:
    """How well the centres `way (T, 2)` (NaN where the object is not seen) go in the direction of the unit step `(2,)`:
    the share of MIN_TRAVEL that is covered times the share of even and straight steps."""
    there = np.flatnonzero(~np.isnan(way[:, 0]))
    if len(there) < 2:
        return 0.0
    along, across = way @ step, way @ step[::-1]
    travel = float(along[there[-1]] - along[there[0]])
    steps = np.diff(along)
    with np.errstate(invalid="ignore"):  # a NaN fits nothing
        even = (steps >= -BACK) & (steps <= 2 * travel / len(steps) + BACK)
        straight = np.abs(across[1:] - across[there[0]]) <= DRIFT
    return min(max(travel / MIN_TRAVEL, 0.0), 1.0) * float((even & straight).mean())


def stays(way: np.ndarray) -> float:
    """The share of frames in which the object is seen where it was first seen."""
    there = np.flatnonzero(~np.isnan(way[:, 0]))
    if not len(there):
        return 0.0
    with np.errstate(invalid="ignore"):
        return float((np.abs(way - way[there[0]]) <= DRIFT).all(axis=1).mean())
