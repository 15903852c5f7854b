"""How many things of a colour, or of a colour and a shape, are in the picture?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from mmrl.data.puzzles.answer import whole_number
from mmrl.data.puzzles.checklist import checklist, plural
from mmrl.data.puzzles.draw import COLORS, SHAPES, Thing, add_noise, canvas, paint, places
from mmrl.data.puzzles.puzzle import UNPARSED, Pictures, Puzzle, PuzzleMaker, Verdict


@dataclass(frozen=True)
class Level:
    """0 to `most` things that count and 0 to `others` that do not, on a board of `cells` x `cells`."""

    most: int
    others: int
    cells: int
    shape: bool
    what: str


LEVELS: dict[int, Level] = {
    1: Level(4, 2, 3, False, "0 to 4 things of a colour, up to 2 of other colours"),
    2: Level(4, 4, 3, True, "0 to 4 things of a colour and a shape, up to 4 others"),
    3: Level(8, 10, 5, True, "0 to 8 things of a colour and a shape, up to 10 others"),
    4: Level(12, 24, 6, True, "0 to 12 things of a colour and a shape, up to 24 others"),
}


def count_credit(guess: int, true: int) -> float:
    """max(0, 1 - |guess - true| / max(true, 1))."""
    return max(0.0, 1 - abs(guess - true) / max(true, 1))


def _chance(most: int) -> float:
    """Mean credit of a guess over 0..most for a count over 0..most."""
    numbers = range(most + 1)
    return sum(count_credit(guess, true) for guess in numbers for true in numbers) / len(numbers) ** 2


class CountShapes(PuzzleMaker):
    """How many things of a colour, or of a colour and a shape, are in the picture?

    A wrong number p for n things earns max(0, 1 - |p - n| / max(n, 1)). All counts are equally likely, and no picture is empty.
    """

    kind = "count_shapes"
    levels: ClassVar[Mapping[int, str]] = {number: level.what for number, level in LEVELS.items()}
    chance: ClassVar[Mapping[int, float]] = {number: _chance(level.most) for number, level in LEVELS.items()}

    size: int = Field(default=224, ge=24, le=2048)
    """Side of the picture in pixels."""
    noise: float = Field(default=0.0, ge=0, le=128)
    """Standard deviation of the pixel noise, on the scale 0-255."""
    checklist: bool = False
    """Sub-questions about the picture in `meta.checklist`."""

    def make(self, rng: np.random.Generator, level: int, pictures: Pictures) -> Puzzle:
        """One picture, uint8 (size, size, 3). Raises UserError for a level that does not exist."""
        self.check_level(level)
        rules = LEVELS[level]
        color, shape = str(rng.choice(COLORS)), str(rng.choice(SHAPES))
        count = int(rng.integers(rules.most + 1))
        others = int(rng.integers(0 if count else 1, rules.others + 1))
        looks = [(color, shape if rules.shape else str(rng.choice(SHAPES))) for _ in range(count)]
        looks += [_other(rng, color, shape if rules.shape else None) for _ in range(others)]
        picture = canvas(self.size, self.size)
        for look, place in zip(looks, places(len(looks), self.size, rng, rules.cells), strict=True):
            paint(picture, Thing(*look, *place))
        asked = f"{color} {plural(shape)}" if rules.shape else f"{color} things"
        question = f"How many {asked} are in the picture? Give a number."
        rationale = f"Of the {len(looks)} things in the picture, {count} {'is' if count == 1 else 'are'} {color if not rules.shape else asked}."
        media = (add_noise(picture, self.noise, rng),)
        meta: dict[str, Any] = {"rationale": rationale}
        if self.checklist:
            meta["checklist"] = checklist(looks, color, shape if rules.shape else None, rules.most + rules.others, rng)
        return Puzzle(question, media, {"count": count, "most": rules.most}, str(count), meta)

    @classmethod
    def verify(cls, target: Mapping[str, Any], answer: str) -> Verdict:
        """A whole number in digits, or a word up to twelve; anything else is unparsed."""
        guess = whole_number(answer)
        if guess is None:
            return UNPARSED
        return Verdict(count_credit(guess, target["count"]), guess == target["count"])

    @classmethod
    def random_answer(cls, rng: np.random.Generator, target: Mapping[str, Any]) -> str:
        """Any count that the level has."""
        return str(int(rng.integers(target["most"] + 1)))


def _other(rng: np.random.Generator, color: str, shape: str | None) -> tuple[str, str]:
    """A look that does not count; where a shape is asked for, two of three share the colour or the shape with those that do."""
    colors = [other for other in COLORS if other != color]
    if shape is None:
        return str(rng.choice(colors)), str(rng.choice(SHAPES))
    shapes = [other for other in SHAPES if other != shape]
    shared = int(rng.integers(3))
    return color if shared == 0 else str(rng.choice(colors)), shape if shared == 1 else str(rng.choice(shapes))
