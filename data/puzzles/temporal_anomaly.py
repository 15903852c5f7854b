"""From when to when is something wrong with the video?"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from mmrl.data.puzzles.anomalies import KINDS, LOUD, MOTION_KINDS, PICTURE_KINDS, perturbed
from mmrl.data.puzzles.clips import VideoMaker
from mmrl.data.puzzles.puzzle import UNPARSED, Pictures, Puzzle, Verdict
from mmrl.data.puzzles.spans import read_span, show_time, span_iou
from mmrl.errors import UserError


@dataclass(frozen=True)
class Level:
    """Spans of `least` to `most` frames that one of `kinds` perturbs."""

    least: int
    most: int
    kinds: tuple[str, ...]
    what: str


FRAMES = 48
MARGIN = 4
"""Frames at each end of a video that are always as they should be."""
LEVELS: dict[int, Level] = {
    1: Level(16, 24, LOUD, f"{len(LOUD)} kinds that show in one frame, over a third to a half of the video"),
    2: Level(8, 16, tuple(PICTURE_KINDS), f"{len(PICTURE_KINDS)} kinds of wrong pictures, over a sixth to a third"),
    3: Level(8, 16, tuple(MOTION_KINDS), f"{len(MOTION_KINDS)} kinds of wrong motion, over a sixth to a third"),
    4: Level(5, 8, KINDS, f"all {len(KINDS)} kinds, over a tenth to a sixth"),
}
MIN_CHANGE = 1.0
"""Mean difference of a wrong frame from the right one, on the scale 0-255, at the least."""
TRIES = 100


def _chance(least: int, most: int) -> float:
    """Mean IoU of two spans that are drawn apart from each other as `make` draws them."""
    spans = [
        (first, first + length, 1 / (most - least + 1) / (FRAMES - length - 2 * MARGIN + 1))
        for length in range(least, most + 1)
        for first in range(MARGIN, FRAMES - length - MARGIN + 1)
    ]
    start, end, weight = (np.array(column, dtype=np.float64) for column in zip(*spans, strict=True))
    shared = np.clip(np.minimum.outer(end, end) - np.maximum.outer(start, start), 0, None)
    union = np.add.outer(end - start, end - start) - shared
    return float(weight @ (shared / union) @ weight)


class TemporalAnomaly(VideoMaker):
    """In a stretch of the video the picture or the motion is wrong: from when to when?

    Blur, noise, blocks, inverted, lost or exchanged colours, wrong brightness, turned, mirrored, enlarged or covered pictures;
    a video that stands still, runs backwards, too fast, in a wrong order or to and fro. The score is the temporal IoU.
    """

    kind = "temporal_anomaly"
    levels: ClassVar[Mapping[int, str]] = {number: level.what for number, level in LEVELS.items()}
    chance: ClassVar[Mapping[int, float]] = {
        number: _chance(level.least, level.most) for number, level in LEVELS.items()
    }

    frames: int = Field(default=FRAMES, ge=FRAMES, le=4096)
    """Frames of the video."""
    kinds: tuple[str, ...] = ()
    """What may be wrong, instead of the kinds of the level: some for training, others to see what carries over."""
    reversed: Literal["zero", "swap"] = "zero"
    """A span that ends before it starts earns nothing, or is turned round first."""

    @model_validator(mode="after")
    def _known_kinds(self) -> TemporalAnomaly:
        for name in self.kinds:
            if name not in KINDS:
                near = difflib.get_close_matches(name, KINDS, n=1)
                raise ValueError(
                    f"kinds: no '{name}'{f'; did you mean {near[0]!r}?' if near else ''} (there: {', '.join(KINDS)})"
                )
        return self

    def make(self, rng: np.random.Generator, level: int, pictures: Pictures) -> Puzzle:
        """One video, uint8 (frames, size, size, 3). Raises UserError for a level that does not exist and for videos that
        are too short or so still or plain that nothing wrong would show."""
        self.check_level(level)
        rules = LEVELS[level]
        kinds = self.kinds or rules.kinds
        name = kinds[int(rng.integers(len(kinds)))]
        first, length = _draw(rng, self.frames, rules.least, rules.most)
        shown = self._perturbed(rng, pictures, name, first, length)
        span = [round(frame / self.fps, 2) for frame in (first, first + length)]
        answer = f"{show_time(span[0])}-{show_time(span[1])}"
        seconds, least, most = (show_time(frames / self.fps) for frames in (self.frames, rules.least, rules.most))
        question = (
            f"This video is {seconds} seconds long. In one stretch of {least} to {most} seconds something is wrong with its "
            "pictures or its motion. From when to when? Give the start and the end in seconds, such as 1.0-2.5."
        )
        said = (PICTURE_KINDS.get(name) or MOTION_KINDS[name])[1]
        target = {
            "span": span,
            "reversed": self.reversed,
            "frames": self.frames,
            "fps": self.fps,
            "lengths": [rules.least, rules.most],
        }
        rationale = f"From {show_time(span[0])} to {show_time(span[1])} seconds {said}."
        return Puzzle(
            question, (self.filmed(shown),), target, answer, {"rationale": rationale, "fps": self.fps, "anomaly": name}
        )

    def _perturbed(
        self, rng: np.random.Generator, pictures: Pictures, name: str, first: int, length: int
    ) -> np.ndarray:
        """A clip in which the frames of the span, its ends among them, are seen to be wrong."""
        for _ in range(TRIES):
            source = self.clip(rng, self.frames + length, pictures, things=3, motion="bounce")
            shown = perturbed(source, name, first, length, rng)
            stretch = slice(first, first + length)
            change = np.abs(shown[stretch].astype(np.float32) - source[stretch]).mean(axis=(1, 2, 3))
            if change.mean() >= MIN_CHANGE and min(change[0], change[-1]) >= MIN_CHANGE / 4:
                return shown
        raise UserError(
            f"puzzle '{self.kind}': {TRIES} videos in a row are too still or too plain to show '{name}'; use videos with more "
            "motion, or set kinds"
        )

    @classmethod
    def verify(cls, target: Mapping[str, Any], answer: str) -> Verdict:
        """A span of time in seconds, mm:ss or h:mm:ss; anything else is unparsed."""
        guess = read_span(answer)
        if guess is None:
            return UNPARSED
        if target["reversed"] == "swap":
            guess = min(guess), max(guess)
        score = span_iou(guess, (target["span"][0], target["span"][1]))
        return Verdict(score, score == 1.0)

    @classmethod
    def random_answer(cls, rng: np.random.Generator, target: Mapping[str, Any]) -> str:
        """Any span of a length that the question allows."""
        first, length = _draw(rng, target["frames"], *target["lengths"])
        return f"{show_time(first / target['fps'])}-{show_time((first + length) / target['fps'])}"


def _draw(rng: np.random.Generator, frames: int, least: int, most: int) -> tuple[int, int]:
    """First frame and number of frames of a span: any length, then any place that leaves the margins."""
    length = int(rng.integers(least, most + 1))
    return int(rng.integers(MARGIN, frames - length - MARGIN + 1)), length
