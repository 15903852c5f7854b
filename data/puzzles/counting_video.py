"""How many things of each shape turn up in a video?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from mmrl.data.puzzles.answer import whole_number, whole_numbers
from mmrl.data.puzzles.clips import VideoMaker
from mmrl.data.puzzles.count_shapes import count_credit
from mmrl.data.puzzles.draw import COLORS, SHAPES, Thing, paint, places
from mmrl.data.puzzles.puzzle import UNPARSED, Pictures, Puzzle, Verdict


@dataclass(frozen=True)
class Level:
    """`asked` shapes with 0 to `most` things each and up to `others` things of another shape, in `moments` moments; the
    things of a moment stand on a board of `cells` x `cells`, which holds all of them."""

    asked: int
    most: int
    others: int
    moments: int
    cells: int
    what: str


LEVELS: dict[int, Level] = {
    1: Level(1, 4, 0, 1, 3, "1 shape, 0 to 4 things in 1 moment"),
    2: Level(2, 4, 0, 2, 3, "2 shapes, 0 to 4 things of each in 2 moments"),
    3: Level(3, 5, 0, 3, 4, "3 shapes, 0 to 5 things of each in 3 moments"),
    4: Level(3, 6, 6, 3, 5, "3 shapes, 0 to 6 things of each in 3 moments, and up to 6 of another shape"),
}
REST = 4
"""Frames without things before, between and after the moments, at the least."""


def mean_credit(guess: list[int], true: list[int]) -> float:
    """mean_k max(0, 1 - |guess_k - true_k| / max(true_k, 1)) over equally long lists (VideoSSR)."""
    return sum(count_credit(p, g) for p, g in zip(guess, true, strict=True)) / len(true)


def _chance(most: int) -> float:
    """Mean credit of a guess over 0..most for a count over 0..most; the mean over several is the same."""
    numbers = range(most + 1)
    return sum(count_credit(guess, true) for guess in numbers for true in numbers) / len(numbers) ** 2


class CountingVideo(VideoMaker):
    """Things with a white edge turn up in a few moments of a video: how many of each shape are there in all?

    A thing stays where it is for its moment and is counted once. All counts are equally likely. A wrong number p for n
    things earns max(0, 1 - |p - n| / max(n, 1)), and the score is the mean over the shapes.
    """

    kind = "counting_video"
    levels: ClassVar[Mapping[int, str]] = {number: level.what for number, level in LEVELS.items()}
    chance: ClassVar[Mapping[int, float]] = {number: _chance(level.most) for number, level in LEVELS.items()}

    frames: int = Field(default=32, ge=32, le=4096)
    """Frames of the video."""
    moment: int = Field(default=5, ge=1, le=5)
    """Frames for which the things of a moment are seen; at two looked-at frames per second and fps 4, two or more."""

    def make(self, rng: np.random.Generator, level: int, pictures: Pictures) -> Puzzle:
        """One video, uint8 (frames, size, size, 3). Raises UserError for a level that does not exist and for videos that
        are too short."""
        self.check_level(level)
        rules = LEVELS[level]
        shapes = [str(shape) for shape in rng.permutation(SHAPES)]
        asked = shapes[: rules.asked]
        counts = [int(rng.integers(rules.most + 1)) for _ in asked]
        things = [shape for shape, count in zip(asked, counts, strict=True) for _ in range(count)]
        things += [shapes[rules.asked]] * int(rng.integers(rules.others + 1))
        moments: list[list[str]] = [[] for _ in range(rules.moments)]
        for shape in things:
            moments[int(rng.integers(rules.moments))].append(shape)
        video = self.clip(rng, self.frames, pictures, things=0, motion="once").copy()
        for first, seen in zip(_starts(rng, self.frames, rules.moments, self.moment), moments, strict=True):
            for shape, place in zip(seen, places(len(seen), self.size, rng, rules.cells), strict=True):
                _show(video[first : first + self.moment], Thing(str(rng.choice(COLORS)), shape, *place))
        names = [plural(shape) for shape in asked]
        listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
        form = "a number" if len(names) == 1 else f"{len(names)} numbers in this order with commas between them"
        question = (
            "In this video coloured things with a white edge turn up and go again; each is there once, for a moment. "
            f"How many {listed} are there in the whole video? Give {form}."
        )
        found = ", ".join(
            f"{count} {shape if count == 1 else plural(shape)}" for count, shape in zip(counts, asked, strict=True)
        )
        return Puzzle(
            question=question,
            media=(self.filmed(video),),
            target={"counts": counts, "most": rules.most},
            answer=",".join(map(str, counts)),
            meta={
                "rationale": f"Counted over the whole video: {found}.",
                "fps": self.fps,
                "moments": [len(m) for m in moments],
            },
        )

    @classmethod
    def verify(cls, target: Mapping[str, Any], answer: str) -> Verdict:
        """As many whole numbers as were asked for (a single one also as a word); anything else is unparsed."""
        counts = list(target["counts"])
        one = whole_number(answer) if len(counts) == 1 else None
        guess = whole_numbers(answer) if one is None else [one]
        if guess is None or len(guess) != len(counts):
            return UNPARSED
        return Verdict(mean_credit(guess, counts), guess == counts)

    @classmethod
    def random_answer(cls, rng: np.random.Generator, target: Mapping[str, Any]) -> str:
        """Any counts that the level has."""
        return ",".join(str(int(rng.integers(target["most"] + 1))) for _ in target["counts"])


def plural(shape: str) -> str:
    """ "circles", "crosses"."""
    return shape + ("es" if shape.endswith("s") else "s")


def _starts(rng: np.random.Generator, frames: int, moments: int, length: int) -> list[int]:
    """First frames of the moments, in order: what is left of the video is shared out at random as further rest."""
    spare = frames - moments * length - (moments + 1) * REST
    assert spare >= 0, f"{moments} moments of {length} frames do not fit {frames} frames"
    extra = np.sort(rng.integers(0, spare + 1, size=moments))
    return [int(extra[k]) + (k + 1) * REST + k * length for k in range(moments)]


def _show(frames: np.ndarray, thing: Thing) -> None:
    edge = max(1.0, 0.12 * thing.radius)
    for frame in frames:
        paint(frame, thing, (255, 255, 255))
        paint(frame, Thing(thing.color, thing.shape, thing.x, thing.y, thing.radius - 2 * edge))
