"""How do two things in the picture lie to each other?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from mmrl.data.puzzles.answer import one_of
from mmrl.data.puzzles.draw import Thing, add_noise, canvas, inside, kinds_of_things, paint
from mmrl.data.puzzles.puzzle import UNPARSED, Pictures, Puzzle, PuzzleMaker, Verdict

NEAR = 0.5
"""Credit of a wrong direction before its angle is taken off."""
BOARD = 5
STEPS: dict[str, tuple[int, int]] = {
    "above": (0, -1), "upper right": (1, -1), "right": (1, 0), "lower right": (1, 1),
    "below": (0, 1), "lower left": (-1, 1), "left": (-1, 0), "upper left": (-1, -1),
}  # fmt: skip
"""Direction -> (x, y), clockwise."""
STATEMENTS: dict[str, tuple[int, int]] = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}

Cell = tuple[int, int]


class Relation(PuzzleMaker):
    """How do two things lie to each other: is a statement true, or in which of 4 or 8 directions is one from the other?

    A wrong direction that is d degrees off earns (1 - d / 180) / 2; yes and no are right or wrong.
    """

    kind = "relation"
    levels: ClassVar[Mapping[int, str]] = {
        1: "yes or no about two things",
        2: "one of 4 directions between two things",
        3: "one of 8 directions between two of eight things",
        4: "yes or no about two statements on three of nine things",
    }
    chance: ClassVar[Mapping[int, float]] = {1: 1 / 2, 2: 3 / 8, 3: 5 / 16, 4: 1 / 2}

    size: int = Field(default=224, ge=40, le=2048)
    """Side of the picture in pixels."""
    noise: float = Field(default=0.0, ge=0, le=128)
    """Standard deviation of the pixel noise, on the scale 0-255."""

    def make(self, rng: np.random.Generator, level: int, pictures: Pictures) -> Puzzle:
        """One picture, uint8 (size, size, 3). Raises UserError for a level that does not exist."""
        self.check_level(level)
        things = kinds_of_things(rng, {1: 2, 2: 2, 3: 8, 4: 9}[level])
        names = [" ".join(thing) for thing in things]
        cells = [divmod(int(cell), BOARD)[::-1] for cell in rng.permutation(BOARD * BOARD)]
        if level in (2, 3):
            choices = list(STEPS)[:: 2 if level == 2 else 1]
            answer = choices[int(rng.integers(len(choices)))]
            cells = _directed(rng, cells, STEPS[answer])
            question = (
                f"In which direction from the {names[1]} is the {names[0]}: {', '.join(choices[:-1])} or {choices[-1]}?"
            )
            target: dict[str, Any] = {"answer": answer, "choices": choices}
            rationale = f"Seen from the {names[1]}, the {names[0]} is {answer}."
        else:
            asked = [str(rng.choice(list(STATEMENTS))) for _ in range(1 if level == 1 else 2)]
            truth = _truths(rng, len(asked))
            cells = _stated(cells, [STATEMENTS[a] for a in asked], truth)
            said = " and ".join(f"{word} the {names[1 + number]}" for number, word in enumerate(asked))
            question = f"Is the {names[0]} {said}? Answer yes or no."
            answer = "yes" if all(truth) else "no"
            target = {"answer": answer, "choices": ["yes", "no"]}
            rationale = " ".join(
                f"The {names[0]} is {'' if true else 'not '}{word} the {names[1 + number]}."
                for number, (word, true) in enumerate(zip(asked, truth, strict=True))
            )
        picture = canvas(self.size, self.size)
        for look, (x, y) in zip(things, cells, strict=False):
            paint(picture, Thing(*look, *inside(y * BOARD + x, BOARD, self.size, rng)))
        return Puzzle(question, (add_noise(picture, self.noise, rng),), target, answer, {"rationale": rationale})

    @classmethod
    def verify(cls, target: Mapping[str, Any], answer: str) -> Verdict:
        """One of the choices; anything else is unparsed."""
        choices = target["choices"]
        said = one_of(answer, choices)
        if said is None:
            return UNPARSED
        if said == target["answer"]:
            return Verdict(1.0, True)
        if len(choices) == 2:
            return Verdict(0.0, False)
        off = abs(choices.index(said) - choices.index(target["answer"]))
        turn = min(off, len(choices) - off) / (len(choices) / 2)
        return Verdict(NEAR * (1 - turn), False)

    @classmethod
    def random_answer(cls, rng: np.random.Generator, target: Mapping[str, Any]) -> str:
        """Any of the choices."""
        return str(rng.choice(target["choices"]))


def _directed(rng: np.random.Generator, cells: list[Cell], step: Cell) -> list[Cell]:
    """The cells in an order in which the first lies exactly in the direction `step` from the second."""
    pairs = [
        ((x + far * step[0], y + far * step[1]), (x, y))
        for x, y in cells
        for far in range(1, BOARD)
        if 0 <= x + far * step[0] < BOARD and 0 <= y + far * step[1] < BOARD
    ]
    first, second = pairs[int(rng.integers(len(pairs)))]
    return [first, second, *(cell for cell in cells if cell not in (first, second))]


def _truths(rng: np.random.Generator, number: int) -> list[bool]:
    """Which of the statements hold: all of them in half of the cases, else any other combination."""
    if rng.integers(2):
        return [True] * number
    code = int(rng.integers(2**number - 1))
    return [bool(code >> bit & 1) for bit in range(number)]


def _stated(cells: list[Cell], steps: list[Cell], truth: list[bool]) -> list[Cell]:
    """The cells in an order in which the first lies on the stated side of the next ones, or, where the statement is to be
    false, on the other side."""

    def side(a: Cell, b: Cell, step: Cell) -> int:
        return (a[0] - b[0]) * step[0] + (a[1] - b[1]) * step[1]

    for first in cells:
        rest, chosen = [cell for cell in cells if cell != first], []
        for step, true in zip(steps, truth, strict=True):
            found = next((c for c in rest if (side(first, c, step) > 0 if true else side(first, c, step) < 0)), None)
            if found is None:
                break
            rest.remove(found)
            chosen.append(found)
        else:
            return [first, *chosen, *rest]
    raise AssertionError("a cell in the middle satisfies every statement")
