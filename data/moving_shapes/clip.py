"""Target -> a random clip that satisfies it -> frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmrl.data.moving_shapes.captions import DIRECTIONS, Target, wanted
from mmrl.data.shapes.draw import blank, paint
from mmrl.data.shapes.world import CANVAS, GLYPHS

LEAST = 8
"""Pixels that a moving object goes at least."""


@dataclass(frozen=True)
class Track:
    """One object on its way in a straight line at one speed; `start` and `end` are (left, top) in pixels."""

    color: str
    shape: str
    start: tuple[int, int]
    end: tuple[int, int]

    @property
    def centre(self) -> list[float]:
        """The middle (x, y) of its box in the first frame."""
        height, width = GLYPHS[self.shape].shape
        return [self.start[0] + (width - 1) / 2, self.start[1] + (height - 1) / 2]

    @property
    def swept(self) -> tuple[int, int, int, int]:
        """The box (left, top, right, bottom) that it passes over, the ends excluded."""
        height, width = GLYPHS[self.shape].shape
        (x0, y0), (x1, y1) = self.start, self.end
        return min(x0, x1), min(y0, y1), max(x0, x1) + width, max(y0, y1) + height


def sample_clip(target: Target, rng: np.random.Generator) -> tuple[Track, ...]:
    """Tracks that satisfy a target; whatever stays is at least 1 px from the way of what moves."""
    things = wanted(target)
    step = np.array(DIRECTIONS[target["direction"]])
    while True:
        tracks = []
        for index, (color, shape) in enumerate(things):
            room = CANVAS - np.array(GLYPHS[shape].shape)[::-1]
            start = rng.integers(0, room + 1)
            way = int(rng.integers(LEAST, int(room.min()) + 1)) if index == 0 else 0
            end = start + way * step
            if (end < 0).any() or (end > room).any():
                break
            tracks.append(Track(color, shape, (int(start[0]), int(start[1])), (int(end[0]), int(end[1]))))
        if len(tracks) == len(things) and not (len(tracks) == 2 and _meet(*tracks)):
            return tuple(tracks)


def _meet(a: Track, b: Track) -> bool:
    p, q = a.swept, b.swept
    return max(q[0] - p[2], p[0] - q[2], q[1] - p[3], p[1] - q[3]) < 1


def render(tracks: Sequence[Track], frames: int) -> np.ndarray:
    """The frames of a clip, uint8 (frames, 24, 24, 3); the first one shows the starts and the last one the ends."""
    video = blank(frames)
    for track in tracks:
        way = np.rint(np.linspace(track.start, track.end, frames)).astype(int)
        for frame, (left, top) in zip(video, way, strict=True):
            paint(frame, track.color, track.shape, left, top)
    return video
