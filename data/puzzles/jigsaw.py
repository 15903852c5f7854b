"""A picture cut into tiles and shuffled: which tile belongs where?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from mmrl.data.puzzles.orders import Credit, shuffled, verify_order, written
from mmrl.data.puzzles.puzzle import Pictures, Puzzle, PuzzleMaker, Verdict
from mmrl.errors import UserError

GRIDS: dict[int, int] = {1: 2, 2: 3, 3: 4}
MIN_DIFFERENCE = 6.0
"""Mean difference of any two tiles on the scale 0-255; more alike ones would leave more than one solution."""
TRIES = 100


class Jigsaw(PuzzleMaker):
    """A picture cut into 2 x 2, 3 x 3 or 4 x 4 tiles and shuffled: which tile belongs where?

    No tile is shown at its own place, so answering the order as it is shown earns nothing.
    """

    kind = "jigsaw"
    levels: ClassVar[Mapping[int, str]] = {level: f"{grid} x {grid} tiles" for level, grid in GRIDS.items()}
    chance: ClassVar[Mapping[int, float]] = {level: 1 / (grid * grid - 1) for level, grid in GRIDS.items()}

    size: int = Field(default=224, ge=32, le=2048)
    """Side of the picture in pixels, gaps included."""
    gap: int = Field(default=2, ge=0, le=64)
    """Grey pixels between two tiles."""
    trim: float = Field(default=0.0, ge=0, lt=0.4)
    """Share of a tile's side that is cut off at each edge, so that edges no longer match exactly."""
    credit: Credit = "places"
    """Credit for a wrong order. `displacement` counts how far tiles are from their places, along the reading order;
    `five_or_more` is a fifth of the share of right places, and that only for more than four tiles."""

    @model_validator(mode="after")
    def _leaves_tiles(self) -> Jigsaw:
        if (self.size - 3 * self.gap) // 4 * (1 - 2 * self.trim) < 4:
            raise ValueError(f"size {self.size} with gap {self.gap} and trim {self.trim:g} leaves tiles under 4 pixels")
        return self

    def make(self, rng: np.random.Generator, level: int, pictures: Pictures) -> Puzzle:
        """One picture, uint8 (size, size, 3). Raises UserError for a level that does not exist."""
        self.check_level(level)
        grid = GRIDS[level]
        tile = (self.size - (grid - 1) * self.gap) // grid
        cut = round(tile / (1 - 2 * self.trim))
        tiles = self._tiles(rng, pictures, grid, tile, cut)
        order = shuffled(grid * grid, rng)
        shown = np.full((self.size, self.size, 3), 128, dtype=np.uint8)
        for place, number in enumerate(order):
            row, column = divmod(number - 1, grid)
            top, left = row * (tile + self.gap), column * (tile + self.gap)
            shown[top : top + tile, left : left + tile] = tiles[place]
        n = grid * grid
        question = (
            f"A picture was cut into {grid} x {grid} tiles and shuffled. Number the tiles as they are shown from 1 to {n}, row by "
            f"row. Which tile belongs at each place of the picture, row by row? Give {n} numbers with commas between them."
        )
        rationale = "Row by row, the picture is made of " + "; ".join(
            f"tile {', '.join(map(str, order[row * grid : (row + 1) * grid]))}" for row in range(grid)
        )
        target = {"order": order, "columns": grid, "credit": self.credit}
        return Puzzle(question, (shown,), target, written(order), {"rationale": f"{rationale}."})

    def _tiles(self, rng: np.random.Generator, pictures: Pictures, grid: int, tile: int, cut: int) -> list[np.ndarray]:
        """Tiles (tile, tile, 3) of a picture, row by row, no two alike."""
        edge = (cut - tile) // 2
        for _ in range(TRIES):
            picture = pictures.draw(rng, grid * cut)
            tiles = [
                picture[row * cut + edge : row * cut + edge + tile, column * cut + edge : column * cut + edge + tile]
                for row in range(grid)
                for column in range(grid)
            ]
            if closest(tiles) >= MIN_DIFFERENCE:
                return tiles
        raise UserError(
            f"puzzle 'jigsaw': {TRIES} pictures in a row have tiles that look alike at {grid} x {grid}; use other pictures"
        )

    @classmethod
    def verify(cls, target: Mapping[str, Any], answer: str) -> Verdict:
        """A list of tile numbers; anything but a permutation is unparsed."""
        return verify_order(target["order"], answer, target["credit"], target["columns"])

    @classmethod
    def random_answer(cls, rng: np.random.Generator, target: Mapping[str, Any]) -> str:
        """An order that may be right: one in which no tile is at its own place."""
        return written(shuffled(len(target["order"]), rng))


def closest(pictures: list[np.ndarray]) -> float:
    """Smallest mean absolute difference of two of the pictures (H, W, 3), on the scale 0-255."""
    flat = np.stack(pictures).reshape(len(pictures), -1).astype(np.float32)
    return min(float(np.abs(flat[i + 1 :] - flat[i]).mean(axis=1).min()) for i in range(len(flat) - 1))
