"""Clips of a video in a wrong order: in which order did they happen?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from mmrl.data.puzzles.clips import VideoMaker
from mmrl.data.puzzles.jigsaw import closest
from mmrl.data.puzzles.orders import Credit, not_as_shown, verify_order, written
from mmrl.data.puzzles.puzzle import Pictures, Puzzle, Verdict
from mmrl.data.puzzles.spans import show_time
from mmrl.errors import UserError

CLIPS: dict[int, int] = {1: 3, 2: 4, 3: 6, 4: 8}
MIN_DIFFERENCE = 2.0
"""Mean difference of any two clips on the scale 0-255; more alike ones would leave more than one solution."""
TRIES = 20


def _chance(n: int) -> float:
    """Mean credit of one of the N - 1 orders that may be right for another: of all N = n! orders, against any one of them,
    it is c = 1 - ((n^2 - 1) / 3) / floor(n^2 / 2); the order as it is shown, worth 1 for itself, is neither."""
    c, orders = 1 - (n * n - 1) / 3 / (n * n // 2), math.factorial(n)
    return (orders**2 * c - 2 * orders * c + 1) / (orders - 1) ** 2


class TemporalJigsaw(VideoMaker):
    """A video cut into 3 to 8 clips that are given in a wrong order: in which order did they happen?

    The video is cut into equal parts, and a part is trimmed at both ends, so that no clip goes on where another stops.
    Any order may be the right one, except that the clips never come as they happened.
    """

    kind = "temporal_jigsaw"
    levels: ClassVar[Mapping[int, str]] = {level: f"{n} clips" for level, n in CLIPS.items()}
    chance: ClassVar[Mapping[int, float]] = {level: _chance(n) for level, n in CLIPS.items()}

    clip_frames: int = Field(default=12, ge=4, le=256)
    """Frames of a clip."""
    trim: float = Field(default=0.1, ge=0, lt=0.5)
    """Share of a part that is cut off at each end, at the least."""
    gap: int = Field(default=8, ge=0, le=256)
    """Frames that are missing between two clips, at the least."""
    joined: bool = False
    """Give one video of the clips one after another, instead of a video for each clip."""
    credit: Credit = "displacement"
    """Credit for a wrong order: how far the clips are from their places (`displacement`), the share of right places
    (`places`), of right neighbours (`neighbours`), or `five_or_more`: a fifth of `places` for more than four clips."""

    def make(self, rng: np.random.Generator, level: int, pictures: Pictures) -> Puzzle:
        """One video, uint8 (clip_frames, size, size, 3), per clip; with `joined` one, (n * clip_frames, size, size, 3).

        Raises UserError for a level that does not exist and for videos that are too short or too still.
        """
        self.check_level(level)
        n = CLIPS[level]
        order = not_as_shown(n, rng)
        happened = self._clips(rng, n, pictures)
        shown = [happened[order.index(number)] for number in range(1, n + 1)]
        if self.joined:
            media: tuple[np.ndarray, ...] = (self.filmed(np.concatenate(shown)),)
            given = (
                f"A video was cut into {n} clips of {show_time(self.clip_frames / self.fps)} seconds, and here they are joined in "
                f"a wrong order. Number them from 1 to {n} as they are shown."
            )
        else:
            media = tuple(self.filmed(clip) for clip in shown)
            given = f"A video was cut into {n} clips, and here they are in a wrong order.\n" + "\n".join(
                f"Clip {number}: <video>" for number in range(1, n + 1)
            )
        numbers = ", ".join(map(str, order))
        return Puzzle(
            question=f"{given}\nIn which order did they happen? Give {n} numbers with commas between them, the earliest clip first.",
            media=media,
            target={"order": order, "credit": self.credit},
            answer=written(order),
            meta={"rationale": f"From the earliest to the latest the clips are {numbers}.", "fps": self.fps},
        )

    def _clips(self, rng: np.random.Generator, n: int, pictures: Pictures) -> list[np.ndarray]:
        """The clips as they happened, every two of them different."""
        part, cut = part_frames(self.clip_frames, self.trim, self.gap)
        for _ in range(TRIES):
            video = self.clip(rng, n * part, pictures, things=4, motion="once")
            clips = [video[k * part + cut : k * part + cut + self.clip_frames] for k in range(n)]
            if closest(clips) >= MIN_DIFFERENCE:
                return clips
        raise UserError(
            f"puzzle '{self.kind}': {TRIES} videos in a row have {n} clips that look alike; use videos with more motion"
        )

    @classmethod
    def verify(cls, target: Mapping[str, Any], answer: str) -> Verdict:
        """A list of clip numbers, the earliest first; anything but a permutation is unparsed."""
        return verify_order(target["order"], answer, target["credit"], len(target["order"]))

    @classmethod
    def random_answer(cls, rng: np.random.Generator, target: Mapping[str, Any]) -> str:
        """An order that may be right: any but the one shown."""
        return written(not_as_shown(len(target["order"]), rng))


def part_frames(clip: int, trim: float, gap: int) -> tuple[int, int]:
    """Frames of a part that leaves `clip` of them, and how many are cut off at its start: at least `trim` of the part at
    either end, and at least `gap` between two clips."""
    cut = math.ceil(gap / 2)
    while cut < trim * (clip + 2 * cut):
        cut += 1
    return clip + 2 * cut, cut
