"""Palette, glyphs, board and scenes of the shapes world.

A picture is 24 x 24 RGB on a dark background, seen as a 3 x 3 board of 8 px cells (cell = 3 * row + column).
An object is one glyph (6 or 7 px) of one colour, put 0-2 px from the top left corner of its cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

CANVAS = 24
"""Side of a picture, in pixels."""
CELL = 8
"""Side of a cell of the board, in pixels."""
BOARD = CANVAS // CELL
"""Cells per side of the board."""
MAX_JITTER = 2
"""Largest offset of a glyph inside its cell, in pixels; a glyph never leaves its cell."""

BACKGROUND: tuple[int, int, int] = (16, 16, 24)
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (240, 40, 40),
    "green": (40, 220, 60),
    "blue": (50, 90, 250),
    "yellow": (245, 235, 50),
}
COLORS: tuple[str, ...] = tuple(PALETTE)


def _glyph(*rows: str) -> np.ndarray:
    mask = np.array([[mark == "#" for mark in row] for row in rows])
    mask.setflags(write=False)
    return mask


GLYPHS: dict[str, np.ndarray] = {
    "circle": _glyph("..###..", ".#####.", "#######", "#######", "#######", ".#####.", "..###.."),
    "square": _glyph("######", "######", "######", "######", "######", "######"),
    "triangle": _glyph("...#...", "..###..", "..###..", ".#####.", ".#####.", "#######", "#######"),
}
"""Boolean masks (height, width) of the glyphs."""
SHAPES: tuple[str, ...] = tuple(GLYPHS)


@dataclass(frozen=True)
class Item:
    """One drawn object: colour, shape, cell 0-8 (row-major) and its offset (dx, dy) in the cell, in pixels."""

    color: str
    shape: str
    cell: int
    dx: int = 0
    dy: int = 0

    def __post_init__(self) -> None:
        if self.color not in PALETTE or self.shape not in GLYPHS:
            raise ValueError(f"unknown object {self.color!r} {self.shape!r}; colours {COLORS}, shapes {SHAPES}")
        if not 0 <= self.cell < BOARD * BOARD:
            raise ValueError(f"cell {self.cell} is not on the {BOARD} x {BOARD} board")
        if not (0 <= self.dx <= room(self.shape) and 0 <= self.dy <= room(self.shape)):
            raise ValueError(f"offset ({self.dx}, {self.dy}) takes a {self.shape} out of its cell")

    @property
    def left(self) -> int:
        """Leftmost column of the glyph, in pixels."""
        return self.cell % BOARD * CELL + self.dx

    @property
    def top(self) -> int:
        """Topmost row of the glyph, in pixels."""
        return self.cell // BOARD * CELL + self.dy


@dataclass(frozen=True)
class Scene:
    """What is on the canvas. Objects sit in different cells."""

    items: tuple[Item, ...]

    def __post_init__(self) -> None:
        if len({item.cell for item in self.items}) != len(self.items):
            raise ValueError("two objects share a cell")

    def to_json(self) -> dict[str, Any]:
        """A dict of plain lists, strings and numbers; `from_json` reads it back."""
        return {"items": [asdict(item) for item in self.items]}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Scene:
        """The scene written by `to_json`."""
        return cls(tuple(Item(**item) for item in record["items"]))


def room(shape: str) -> int:
    """Largest offset in pixels that keeps a glyph inside its cell."""
    return min(MAX_JITTER, CELL - max(GLYPHS[shape].shape))


def unit(rgb: np.ndarray | tuple[int, int, int]) -> np.ndarray:
    """uint8 colours (..., 3) on the scale [-1, 1], float32: the unit of every colour distance here."""
    return np.asarray(rgb, dtype=np.float32) / np.float32(127.5) - np.float32(1.0)
