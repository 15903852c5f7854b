"""A picture with a hole and some patches: which one fills it?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from mmrl.data.puzzles.answer import plain
from mmrl.data.puzzles.puzzle import UNPARSED, Pictures, Puzzle, PuzzleMaker, Verdict
from mmrl.errors import UserError

NEAR = 0.5
"""Credit of a wrong patch is below this."""
MIN_CONTRAST = 10.0
MIN_DIFFERENCE = 8.0
"""Mean difference of any two patches on the scale 0-255."""
TRIES = 100
GREY = 128


@dataclass(frozen=True)
class Level:
    """`patches` to choose from; `near` of the wrong ones come from beside the hole or are the right one turned or mirrored."""

    patches: int
    near: bool
    what: str


LEVELS: dict[int, Level] = {
    1: Level(2, False, "2 patches, the wrong one from another picture"),
    2: Level(4, False, "4 patches, the wrong ones from other pictures"),
    3: Level(4, True, "4 patches, the wrong ones from beside the hole, turned or mirrored"),
    4: Level(6, True, "6 patches, the wrong ones from beside the hole, turned or mirrored"),
    5: Level(8, True, "8 patches, the wrong ones from beside the hole, turned or mirrored"),
}


class PatchFit(PuzzleMaker):
    """A picture with a hole and 2 to 8 patches: which one fills it?

    Wrong patches are ranked by how much their pixels differ from the right one's: the worst earns 0, the others share out
    credits below 1/2, more for the nearer ones.
    """

    kind = "patch_fit"
    levels: ClassVar[Mapping[int, str]] = {number: level.what for number, level in LEVELS.items()}
    chance: ClassVar[Mapping[int, float]] = {
        number: (1 + NEAR * (level.patches - 2) / 2) / level.patches for number, level in LEVELS.items()
    }

    size: int = Field(default=224, ge=48, le=2048)
    """Side of the picture in pixels."""
    hole: float = Field(default=0.25, ge=0.15, le=0.3)
    """Side of the hole as a share of the picture's."""

    def make(self, rng: np.random.Generator, level: int, pictures: Pictures) -> Puzzle:
        """The picture uint8 (size, size, 3) and then the patches (side, side, 3). Raises UserError for an unknown level."""
        self.check_level(level)
        rules, side = LEVELS[level], round(self.size * self.hole)
        picture, top, left, wrong = self._choose(rng, pictures, rules, side)
        right = picture[top : top + side, left : left + side].copy()
        holed = picture.copy()
        holed[top : top + side, left : left + side] = GREY
        patches = [right, *wrong]
        order = rng.permutation(len(patches))
        difference = [float(np.abs(patches[i].astype(np.float32) - right).mean()) for i in order]
        letter = ascii_uppercase[int(np.argmin(difference))]
        question = (
            "This picture has a grey hole: <image>\nWhich of these patches fills it? Give its letter.\n"
            + "\n".join(f"{name}: <image>" for name in ascii_uppercase[: len(patches)])
        )
        target = {"answer": letter, "credit": credits_of(difference)}
        rationale = f"Only patch {letter} goes on where the picture stops at the edges of the hole."
        return Puzzle(question, (holed, *(patches[i] for i in order)), target, letter, {"rationale": rationale})

    def _choose(
        self, rng: np.random.Generator, pictures: Pictures, rules: Level, side: int
    ) -> tuple[np.ndarray, int, int, list[np.ndarray]]:
        """A picture, the corner of a hole that is not plain, and wrong patches, none like another or like the right one."""
        for _ in range(TRIES):
            picture = pictures.draw(rng, self.size)
            top, left = (int(value) for value in rng.integers(1, self.size - side, size=2))
            right = picture[top : top + side, left : left + side]
            if right.std(axis=(0, 1)).max() < MIN_CONTRAST:
                continue
            kept = [right]
            for _ in range(10 * rules.patches):
                patch = _near(rng, picture, top, left, side) if rules.near else _other(rng, pictures, self.size, side)
                if min(float(np.abs(patch.astype(np.float32) - one).mean()) for one in kept) >= MIN_DIFFERENCE:
                    kept.append(patch)
                if len(kept) == rules.patches:
                    return picture, top, left, kept[1:]
        raise UserError(f"puzzle 'patch_fit': {TRIES} pictures in a row are too plain for a hole; use other pictures")

    @classmethod
    def verify(cls, target: Mapping[str, Any], answer: str) -> Verdict:
        """One of the letters, in any case; anything else is unparsed."""
        said = plain(answer).strip("()").upper()
        credit = target["credit"]
        if len(said) != 1 or said not in ascii_uppercase[: len(credit)]:
            return UNPARSED
        return Verdict(1.0, True) if said == target["answer"] else Verdict(credit[ascii_uppercase.index(said)], False)

    @classmethod
    def random_answer(cls, rng: np.random.Generator, target: Mapping[str, Any]) -> str:
        """Any of the letters."""
        return ascii_uppercase[int(rng.integers(len(target["credit"])))]


def credits_of(difference: list[float]) -> list[float]:
    """Credit per patch from its distance to the right one (which has 0): 1 for the right one, for the wrong ones
    `NEAR * k / (m - 1)` with k the number of patches that are still further off. Ties go by position."""
    m = len(difference)
    ranked = sorted(range(m), key=lambda index: difference[index])
    worth = [0.0] * m
    for rank, index in enumerate(ranked):
        worth[index] = 1.0 if rank == 0 else NEAR * (m - 1 - rank) / (m - 1)
    return worth


def _near(rng: np.random.Generator, picture: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    """A patch that begins between a quarter and a whole side away from the hole, or the right one turned or mirrored."""
    right = picture[top : top + side, left : left + side]
    change = int(rng.integers(8))
    if change < 3:
        return np.ascontiguousarray(np.rot90(right, 1 + change))
    if change == 3:
        return np.ascontiguousarray(right[:, ::-1])
    while True:
        shift = np.array([top, left]) + rng.integers(-side, side + 1, size=2)
        y, x = (int(value) for value in np.clip(shift, 0, len(picture) - side))
        if max(abs(y - top), abs(x - left)) >= side // 4:
            return picture[y : y + side, x : x + side]


def _other(rng: np.random.Generator, pictures: Pictures, size: int, side: int) -> np.ndarray:
    picture = pictures.draw(rng, size)
    top, left = (int(value) for value in rng.integers(0, size - side, size=2))
    return picture[top : top + side, left : left + side]
