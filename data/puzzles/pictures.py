"""Where the pictures of a puzzle come from: drawn, a user's folder, or real ones that ship inside Python packages."""

from __future__ import annotations

import functools
import importlib.util
from abc import abstractmethod
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field
from scipy import ndimage

from mmrl.components import Component
from mmrl.data.files import DataPath, existing
from mmrl.data.images import SUFFIXES, read_image
from mmrl.data.puzzles.draw import PALETTE, SHAPES, Thing, paint
from mmrl.errors import UserError


class Pictures(Component):
    """Base of every source of pictures: an endless stock, the picture being a function of the generator's state."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """A random square picture, uint8 (size, size, 3). Raises UserError for a file that cannot be read."""

    def check(self) -> None:
        """Raises UserError if there is no picture, before any is drawn."""
        return None


class Procedural(Pictures):
    """Drawn pictures: coloured shapes on a gradient, smooth textures, and scenes with a sky above and a ground below."""

    style: Literal["mixed", "shapes", "texture", "scene"] = "mixed"
    """Only a scene has an up."""

    def draw(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """A new picture of the style."""
        style = self.style if self.style != "mixed" else ("shapes", "texture", "scene")[int(rng.integers(3))]
        return {"shapes": _shapes, "texture": _texture, "scene": _scene}[style](rng, size)


class _Stock(Pictures):
    """Pictures from a list of files, each time another part of one of them."""

    zoom: float = Field(default=1.6, ge=1, le=8)
    """Largest enlargement of a random square part; 1 cuts out the largest square at random."""

    def files(self) -> tuple[Path, ...]:
        """The files, in a fixed order. Raises UserError if there are none."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises UserError if there are no files."""
        self.files()

    def draw(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """A random square part of a random file."""
        files = self.files()
        picture = _read(files[int(rng.integers(len(files)))])
        side = int(min(picture.shape[:2]) / rng.uniform(1, self.zoom))
        top, left = (int(rng.integers(length - side + 1)) for length in picture.shape[:2])
        part = Image.fromarray(picture[top : top + side, left : left + side])
        return np.asarray(part.resize((size, size), Image.Resampling.BICUBIC))


class FolderPictures(_Stock):
    """Every picture in a folder and below. Give training and held-out puzzles folders of their own."""

    path: DataPath

    def files(self) -> tuple[Path, ...]:
        """Sorted by path."""
        return _listed(self.path)


class PhotographPictures(_Stock):
    """Six photographs that scikit-image ships (an astronaut, a man with a camera, a cat, coffee, a motorcycle, a rocket)."""

    def files(self) -> tuple[Path, ...]:
        """The files inside the installed package; none is downloaded."""
        folder = Path(_package("skimage", "scikit-image").submodule_search_locations[0]) / "data"
        names = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
        return tuple(existing(folder / name) for name in names)


class DigitPictures(Pictures):
    """1,797 handwritten digits (8 x 8) that scikit-learn ships, enlarged and tinted."""

    def check(self) -> None:
        """Raises UserError if scikit-learn is not installed."""
        _package("sklearn", "scikit-learn")

    def draw(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """A digit in a bright colour on a dark one."""
        self.check()
        digits = _digits()
        ink = digits[int(rng.integers(len(digits)))] / 16.0
        dark, bright = rng.uniform(0, 70, size=3), rng.uniform(150, 255, size=3)
        small = Image.fromarray(np.rint(dark + ink[..., None] * (bright - dark)).astype(np.uint8))
        return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC))


def _package(module: str, distribution: str) -> Any:
    found = importlib.util.find_spec(module)
    if found is None:
        raise UserError(
            f"these pictures ship inside {distribution}, which is not installed: pip install {distribution}"
        )
    return found


@functools.cache
def _digits() -> np.ndarray:
    datasets: ModuleType = importlib.import_module("sklearn.datasets")
    return datasets.load_digits().images


@functools.lru_cache(maxsize=32)
def _read(path: Path) -> np.ndarray:
    return read_image(path)


@functools.lru_cache(maxsize=8)
def _listed(folder: Path) -> tuple[Path, ...]:
    found = tuple(sorted(path for path in existing(folder, folder=True).rglob("*") if path.suffix.lower() in SUFFIXES))
    if not found:
        raise UserError(f"no picture in {folder.absolute()} (looked for {', '.join(SUFFIXES)})")
    return found


def _blend(low: np.ndarray, high: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Colours between `low` and `high` (3,) at `share (H, W)` in [0, 1]: float (H, W, 3)."""
    return low + share[..., None] * (high - low)


def _ramp(rng: np.random.Generator, size: int) -> np.ndarray:
    """A linear gradient in a random direction, (size, size) in [0, 1]."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:size, 0:size] / max(1, size - 1) - 0.5
    ramp = np.cos(angle) * x + np.sin(angle) * y
    return (ramp - ramp.min()) / np.ptp(ramp)


def _shapes(rng: np.random.Generator, size: int) -> np.ndarray:
    low, high = rng.uniform(0, 120, size=3), rng.uniform(90, 255, size=3)
    picture = np.rint(_blend(low, high, _ramp(rng, size))).astype(np.uint8)
    names = list(PALETTE)
    for _ in range(int(rng.integers(8, 15))):
        x, y = rng.uniform(0, size, size=2)
        color, shape = names[int(rng.integers(len(names)))], SHAPES[int(rng.integers(len(SHAPES)))]
        paint(picture, Thing(color, shape, float(x), float(y), float(rng.uniform(0.06, 0.16)) * size))
    return picture


def _texture(rng: np.random.Generator, size: int) -> np.ndarray:
    field = np.zeros((size, size))
    for cells, weight in ((3, 1.0), (6, 0.6), (12, 0.35)):
        coarse = rng.normal(size=(cells + 2, cells + 2))
        at = np.linspace(0.5, cells + 0.5, size)
        field += weight * ndimage.map_coordinates(coarse, np.meshgrid(at, at, indexing="ij"), order=3, mode="nearest")
    share = (field - field.min()) / np.ptp(field)
    dark, middle, light = rng.uniform(0, 90, size=3), rng.uniform(40, 215, size=3), rng.uniform(165, 255, size=3)
    lower, upper = _blend(dark, middle, np.clip(2 * share, 0, 1)), _blend(middle, light, np.clip(2 * share - 1, 0, 1))
    return np.rint(np.where(share[..., None] < 0.5, lower, upper)).astype(np.uint8)


def _scene(rng: np.random.Generator, size: int) -> np.ndarray:
    y = np.mgrid[0:size, 0:size][0] / max(1, size - 1)
    horizon = float(rng.uniform(0.55, 0.75))
    sky = _blend(np.array([90.0, 150.0, 230.0]), np.array([225.0, 235.0, 250.0]), np.clip(y / horizon, 0, 1))
    ground = _blend(
        np.array([95.0, 140.0, 70.0]), np.array([40.0, 70.0, 35.0]), np.clip((y - horizon) / (1 - horizon), 0, 1)
    )
    tint = rng.uniform(0.8, 1.05, size=3)
    picture = np.clip(np.where((y < horizon)[..., None], sky, ground) * tint, 0, 255).astype(np.uint8)
    sun = Thing(
        "yellow", "circle", float(rng.uniform(0.1, 0.9)) * size, float(rng.uniform(0.1, 0.25)) * size, 0.07 * size
    )
    paint(picture, sun)
    names = list(PALETTE)
    for x in (rng.permutation(4)[: int(rng.integers(2, 4))] + 0.5 + rng.uniform(-0.1, 0.1)) / 4:
        radius = float(rng.uniform(0.07, 0.11)) * size
        wall, roof = (names[int(index)] for index in rng.choice(len(names), size=2, replace=False))
        foot = (horizon + float(rng.uniform(0.02, 0.12))) * size
        paint(picture, Thing(wall, "square", float(x) * size, foot - radius, radius))
        paint(picture, Thing(roof, "triangle", float(x) * size, foot - 2.6 * radius, radius))
    return picture
