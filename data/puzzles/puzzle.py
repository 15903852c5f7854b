"""What a puzzle is, what its maker must do, and how much an answer without looking is worth."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from mmrl.components import Component
from mmrl.data.puzzles.pictures import Pictures, Procedural
from mmrl.errors import UserError
from mmrl.seeding import derive_seed

__all__ = ["UNPARSED", "Chance", "Pictures", "Puzzle", "PuzzleMaker", "Verdict", "chance"]


@dataclass(frozen=True)
class Puzzle:
    """A question about pictures whose right answer is known.

    `question` has "<image>" and "<video>" where the media stand, in their order, or none of these: then they come first.
    `media`: uint8 images (H, W, 3) or videos (T, H, W, 3). `target`: the JSON-able mapping that `verify` compares with.
    `answer`: a right answer, as it stands inside <answer></answer>. `meta`: JSON-able; "rationale" (a true sentence that
    leads to the answer, used in demonstrations), for videos "fps", and what else describes the puzzle.
    """

    question: str
    media: tuple[np.ndarray, ...]
    target: dict[str, Any]
    answer: str
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What an answer is worth: `score` in [0, 1], `exact` if nothing is wrong with it (then the score is 1), `parsed` if
    it could be read as an answer to the question at all (if not, the score is 0)."""

    score: float
    exact: bool
    parsed: bool = True

    def __post_init__(self) -> None:
        assert 0 <= self.score <= 1 and (not self.exact or self.score == 1) and (self.parsed or self.score == 0)


UNPARSED = Verdict(0.0, False, False)


class PuzzleMaker(Component):
    """Base of every puzzle kind. Fields are its options in a mixture; the levels go from easy to hard.

    `make` and `verify` are pure: the same generator state gives the same puzzle, and `target` is all that `verify` needs.
    A better answer scores more; what earns nothing is an answer that was not worked for (the order as it is shown, ...).
    """

    kind: ClassVar[str]
    levels: ClassVar[Mapping[int, str]]
    """Level -> what it is, in one line."""
    chance: ClassVar[Mapping[int, float]] = {}
    """Level -> mean score of `random_answer` with the default options."""

    @abstractmethod
    def make(self, rng: np.random.Generator, level: int, pictures: Pictures) -> Puzzle:
        """A new puzzle of `level`. Raises UserError for a level that does not exist."""

    @classmethod
    @abstractmethod
    def verify(cls, target: Mapping[str, Any], answer: str) -> Verdict:
        """What `answer` (the text inside <answer></answer>) is worth."""

    @classmethod
    @abstractmethod
    def random_answer(cls, rng: np.random.Generator, target: Mapping[str, Any]) -> str:
        """A well-formed answer by someone who knows the question and has not looked at the pictures."""

    @classmethod
    def check_level(cls, level: int) -> None:
        """Raises UserError that names the levels there are."""
        if level not in cls.levels:
            there = "; ".join(f"{number}: {what}" for number, what in cls.levels.items())
            raise UserError(f"puzzle '{cls.kind}' has no level {level} (there: {there})")


@dataclass(frozen=True)
class Chance:
    """Random answers to puzzles: their mean score with its standard error, and the share that was exact."""

    score: float
    error: float
    exact: float


def chance(
    maker: PuzzleMaker,
    level: int,
    number: int = 1000,
    answers: int = 1,
    pictures: Pictures | None = None,
    seed: int = 0,
) -> Chance:
    """Measure what `answers` random answers to each of `number` puzzles score (pictures: procedural if None)."""
    scores, exact = np.zeros((number, answers)), 0
    for index in range(number):
        rng = np.random.default_rng(derive_seed("chance", maker.kind, level, seed, index))
        target = maker.make(rng, level, pictures or Procedural()).target
        for column in range(answers):
            verdict = maker.verify(target, maker.random_answer(rng, target))
            scores[index, column], exact = verdict.score, exact + verdict.exact
    means = scores.mean(axis=1)
    return Chance(float(means.mean()), float(means.std() / np.sqrt(number)), exact / scores.size)
