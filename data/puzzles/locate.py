"""In which part of the picture is a thing?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from mmrl.data.puzzles.answer import plain
from mmrl.data.puzzles.draw import Thing, add_noise, canvas, inside, kinds_of_things, paint
from mmrl.data.puzzles.puzzle import UNPARSED, Pictures, Puzzle, PuzzleMaker, Verdict

HALF = 0.25
"""Credit for a place of which only the row or only the column is right."""
ROWS: dict[int, tuple[str, ...]] = {2: ("upper", "lower"), 3: ("upper", "middle", "lower")}
COLUMNS: dict[int, tuple[str, ...]] = {2: ("left", "right"), 3: ("left", "middle", "right")}
LEVELS: dict[int, tuple[int, int]] = {1: (2, 0), 2: (2, 6), 3: (3, 0), 4: (3, 10)}
"""Level -> parts per side, and other things in the picture."""
_WORDS = {"top": "upper", "bottom": "lower", "center": "middle", "centre": "middle", "central": "middle"}


def part(row: int, column: int, parts: int) -> str:
    """ "upper left", ..., "middle" for the middle of 3 x 3."""
    words = (ROWS[parts][row], COLUMNS[parts][column])
    return "middle" if words == ("middle", "middle") else " ".join(words)


class Locate(PuzzleMaker):
    """In which of 4 or 9 parts of the picture is a thing, alone or among others?

    An answer with only the row or only the column right earns 1/4.
    """

    kind = "locate"
    levels: ClassVar[Mapping[int, str]] = {
        level: f"one of {parts * parts} parts, " + (f"among {others} others" if others else "alone")
        for level, (parts, others) in LEVELS.items()
    }
    chance: ClassVar[Mapping[int, float]] = {
        level: (1 + 2 * HALF * (parts - 1)) / parts**2 for level, (parts, _) in LEVELS.items()
    }

    size: int = Field(default=224, ge=24, le=2048)
    """Side of the picture in pixels."""
    noise: float = Field(default=0.0, ge=0, le=128)
    """Standard deviation of the pixel noise, on the scale 0-255."""

    def make(self, rng: np.random.Generator, level: int, pictures: Pictures) -> Puzzle:
        """One picture, uint8 (size, size, 3). Raises UserError for a level that does not exist."""
        self.check_level(level)
        parts, others = LEVELS[level]
        cells = 2 * parts if others else parts
        things = kinds_of_things(rng, 1 + others)
        picture, place = canvas(self.size, self.size), 0
        for number, cell in enumerate(rng.choice(cells * cells, size=len(things), replace=False)):
            paint(picture, Thing(*things[number], *inside(int(cell), cells, self.size, rng)))
            if number == 0:
                place = int(cell)
        row, column = (index * parts // cells for index in divmod(place, cells))
        name, answer = " ".join(things[0]), part(row, column, parts)
        choices = [part(r, c, parts) for r in range(parts) for c in range(parts)]
        question = f"Where is the {name}: {', '.join(choices[:-1])} or {choices[-1]}?"
        target = {"row": row, "column": column, "parts": parts}
        media = (add_noise(picture, self.noise, rng),)
        return Puzzle(
            question, media, target, answer, {"rationale": f"The {name} is in the {answer} part of the picture."}
        )

    @classmethod
    def verify(cls, target: Mapping[str, Any], answer: str) -> Verdict:
        """One of the parts asked for (also with top, bottom, center); anything else is unparsed."""
        parts = target["parts"]
        said = " ".join(_WORDS.get(word, word) for word in plain(answer).replace("-", " ").split())
        for row in range(parts):
            for column in range(parts):
                if said == part(row, column, parts):
                    right = (row == target["row"]) + (column == target["column"])
                    return Verdict((0.0, HALF, 1.0)[right], right == 2)
        return UNPARSED

    @classmethod
    def random_answer(cls, rng: np.random.Generator, target: Mapping[str, Any]) -> str:
        """Any of the parts."""
        row, column = rng.integers(target["parts"], size=2)
        return part(int(row), int(column), target["parts"])
