"""Other looks at a picture: what the model might not have needed to see.

A view is a pure function of the pixels, a seed and its options. Pictures come as the model sees them, after resizing.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

ViewName = Literal["original", "masked", "noisy", "perturbed", "blank"]
VIEWS: tuple[ViewName, ...] = ("original", "masked", "noisy", "perturbed", "blank")


class ViewOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Masked(ViewOptions):
    """Squares of `patch` pixels blackened with probability `ratio` each. Source: PAPO, `random_patch_blackening`."""

    ratio: float = Field(default=0.6, ge=0, le=1)
    patch: PositiveInt = 14

    def apply(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = pixels.shape[-3:-1]
        rows, columns = -(-height // self.patch), -(-width // self.patch)
        black = rng.random((*pixels.shape[:-3], rows, columns)) < self.ratio
        return blacken(pixels, black, self.patch)


class Noisy(ViewOptions):
    """Gaussian noise of standard deviation `std` (of the range 0 to 1) on every pixel."""

    std: PositiveFloat = 0.2

    def apply(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return to_uint8(pixels + rng.normal(0.0, 255 * self.std, pixels.shape))


class Perturbed(ViewOptions):
    """A noising step of a diffusion process: `sqrt(keep) x + sqrt(1 - keep) n`, x scaled to [-1, 1], n standard normal."""

    keep: float = Field(default=0.5, ge=0, lt=1)

    def apply(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        scaled = pixels / 127.5 - 1
        return to_uint8(
            127.5 * (np.sqrt(self.keep) * scaled + np.sqrt(1 - self.keep) * rng.normal(size=pixels.shape) + 1)
        )


class Blank(ViewOptions):
    """One colour everywhere: the picture's own mean, or middle grey."""

    colour: Literal["mean", "grey"] = "grey"
    """Grey tells nothing; the mean still tells the colour of a picture, and the brightness of a frame."""

    def apply(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        mean = pixels.mean(axis=(-3, -2), keepdims=True) if self.colour == "mean" else 127.5
        return to_uint8(np.broadcast_to(mean, pixels.shape))


class Views(ViewOptions):
    """The `views:` block of a policy: options of every view but the original one."""

    masked: Masked = Masked()
    noisy: Noisy = Noisy()
    perturbed: Perturbed = Perturbed()
    blank: Blank = Blank()

    def see(self, view: str, pixels: np.ndarray, seed: int) -> np.ndarray:
        """`pixels` uint8 `(H, W, 3)` or `(T, H, W, 3)` (each frame for itself) through `view`, the same shape and dtype."""
        if view == "original":
            return pixels
        options: Masked | Noisy | Perturbed | Blank = getattr(self, view)
        return options.apply(pixels, np.random.default_rng(seed))


def blacken(pixels: np.ndarray, black: np.ndarray, patch: int) -> np.ndarray:
    """`pixels (..., H, W, 3)` with 0 where `black (..., rows, columns)` bool says so; the last row and column of squares
    may be cut off by the edge."""
    height, width = pixels.shape[-3:-1]
    mask = black.repeat(patch, axis=-2).repeat(patch, axis=-1)[..., :height, :width, None]
    return np.where(mask, np.uint8(0), pixels)


def to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
