"""Coloured things on a canvas: the palette, the outlines, and where things go so that none touches another.

Coordinates are pixels, x to the right and y down; a canvas is uint8 (H, W, 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (225, 45, 45),
    "green": (45, 185, 70),
    "blue": (50, 95, 235),
    "yellow": (245, 215, 45),
    "purple": (165, 60, 205),
    "cyan": (60, 205, 215),
}
COLORS: tuple[str, ...] = tuple(PALETTE)
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross")
PAPER: tuple[int, int, int] = (24, 24, 32)


@dataclass(frozen=True)
class Thing:
    """A shape of a colour around (x, y), `radius` pixels from its centre to its edges."""

    color: str
    shape: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        """ "red circle"."""
        return f"{self.color} {self.shape}"


def canvas(height: int, width: int, color: tuple[int, int, int] = PAPER) -> np.ndarray:
    """An empty picture."""
    return np.full((height, width, 3), color, dtype=np.uint8)


def outline(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Which points at (dx, dy) from the centre a shape covers. Raises ValueError for an unknown shape."""
    if shape == "circle":
        return dx**2 + dy**2 <= radius**2
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) <= 0.87 * radius
    if shape == "triangle":
        return (np.abs(dx) <= (dy + radius) / 2) & (np.abs(dy) <= radius)
    if shape == "cross":
        near, far = np.minimum(np.abs(dx), np.abs(dy)), np.maximum(np.abs(dx), np.abs(dy))
        return (near <= radius / 3) & (far <= radius)
    raise ValueError(f"unknown shape {shape!r}; shapes are {', '.join(SHAPES)}")


def paint(picture: np.ndarray, thing: Thing, color: tuple[int, int, int] | None = None) -> None:
    """Draw a thing into a canvas, in the palette's colour unless another is given."""
    height, width, _ = picture.shape
    top, left = max(0, int(thing.y - thing.radius)), max(0, int(thing.x - thing.radius))
    bottom, right = min(height, int(thing.y + thing.radius) + 2), min(width, int(thing.x + thing.radius) + 2)
    if top >= bottom or left >= right:
        return
    y, x = np.mgrid[top:bottom, left:right] + 0.5
    inside = outline(thing.shape, x - thing.x, y - thing.y, thing.radius)
    picture[top:bottom, left:right][inside] = PALETTE[thing.color] if color is None else color


def add_noise(picture: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    """The picture with Gaussian noise of standard deviation `std` on the scale 0-255."""
    if not std:
        return picture
    return np.clip(np.rint(picture + rng.normal(0, std, picture.shape)), 0, 255).astype(np.uint8)


def places(count: int, side: int, rng: np.random.Generator, cells: int) -> list[tuple[float, float, float]]:
    """(x, y, radius) of `count` things, each alone in a cell of a `cells` x `cells` board over a `side` pixel square."""
    assert count <= cells * cells, f"{count} things do not fit {cells} x {cells} cells"
    return [inside(int(cell), cells, side, rng) for cell in rng.choice(cells * cells, size=count, replace=False)]


def inside(cell: int, cells: int, side: int, rng: np.random.Generator) -> tuple[float, float, float]:
    """(x, y, radius) at random in a cell (row-major) of a `cells` x `cells` board, at least 1 px from its edges."""
    pitch = side / cells
    radius = float(rng.uniform(0.28, 0.40)) * pitch
    slack = max(0.0, pitch / 2 - radius - 1)
    dx, dy = rng.uniform(-slack, slack, size=2)
    row, column = divmod(cell, cells)
    return (column + 0.5) * pitch + float(dx), (row + 0.5) * pitch + float(dy), radius


def kinds_of_things(rng: np.random.Generator, number: int, colors: Sequence[str] = COLORS) -> list[tuple[str, str]]:
    """`number` different (colour, shape) pairs in random order."""
    every = [(color, shape) for color in colors for shape in SHAPES]
    return [every[int(index)] for index in rng.choice(len(every), size=number, replace=False)]
