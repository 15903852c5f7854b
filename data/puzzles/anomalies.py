"""What may be wrong with a stretch of a video: with each of its pictures, or with the order in which they come.

A picture kind maps the frames of the stretch, uint8 (m, H, W, 3), to others. A motion kind says which frames of a longer
source are shown: for a stretch of m frames from frame a of a video of T frames, T numbers below T + m.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

from mmrl.data.puzzles.draw import add_noise

PictureKind = Callable[[np.ndarray, np.random.Generator], np.ndarray]
MotionKind = Callable[[int, int, int, np.random.Generator], np.ndarray]


def _blur(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    sigma = 0.04 * frames.shape[1]
    return ndimage.gaussian_filter(frames, sigma=(0, sigma, sigma, 0))


def _noise(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return add_noise(frames, 45.0, rng)


def _blocks(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    cells, side = 10, frames.shape[1:3]
    small = (Image.fromarray(frame).resize((cells, cells), Image.Resampling.BOX) for frame in frames)
    return np.stack([np.asarray(image.resize(side[::-1], Image.Resampling.NEAREST)) for image in small])


def _invert(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 255 - frames


def _grey(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    grey = frames @ np.array([0.299, 0.587, 0.114])
    return np.repeat(np.rint(grey)[..., None], 3, axis=-1).astype(np.uint8)


def _swap(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return frames[..., [1, 2, 0]]


def _dark(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (frames * 0.3).astype(np.uint8)


def _bright(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (255 - (255 - frames) * 0.4).astype(np.uint8)


def _upside_down(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return frames[:, ::-1]


def _mirror(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return frames[:, :, ::-1]


def _turn(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.rot90(frames, 1 if rng.integers(2) else 3, axes=(1, 2))


def _zoom(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = frames.shape[1:3]
    box = (width // 4, height // 4, width - width // 4, height - height // 4)
    return np.stack(
        [np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC, box)) for frame in frames]
    )


def _cover(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    side = frames.shape[1]
    top, left = (int(value) for value in rng.integers(0, side // 2 + 1, size=2))
    covered = frames.copy()
    covered[:, top : top + side // 2, left : left + side // 2] = 128
    return covered


def _quarters(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.roll(frames, (frames.shape[1] // 2, frames.shape[2] // 2), axis=(1, 2))


PICTURE_KINDS: dict[str, tuple[PictureKind, str]] = {
    "blur": (_blur, "the picture is blurred"),
    "noise": (_noise, "the picture is noisy"),
    "blocks": (_blocks, "the picture falls into blocks"),
    "invert": (_invert, "the colours are inverted"),
    "grey": (_grey, "the colours are gone"),
    "swap": (_swap, "the colours are exchanged"),
    "dark": (_dark, "the picture is too dark"),
    "bright": (_bright, "the picture is too bright"),
    "upside_down": (_upside_down, "the picture is upside down"),
    "mirror": (_mirror, "the picture is mirrored"),
    "turn": (_turn, "the picture lies on its side"),
    "zoom": (_zoom, "the picture is enlarged"),
    "cover": (_cover, "a part of the picture is covered"),
    "quarters": (_quarters, "the quarters of the picture are exchanged"),
}
"""Name -> what it does and how one says it."""


def _freeze(first: int, length: int, total: int, rng: np.random.Generator) -> np.ndarray:
    shown = np.arange(total)
    shown[first : first + length] = first - 1
    return shown


def _reverse(first: int, length: int, total: int, rng: np.random.Generator) -> np.ndarray:
    shown = np.arange(total)
    shown[first : first + length] = shown[first : first + length][::-1].copy()
    return shown


def _fast(first: int, length: int, total: int, rng: np.random.Generator) -> np.ndarray:
    """Twice as fast; afterwards the video goes on from where that has led."""
    shown = np.arange(total)
    shown[first:] += np.minimum(np.arange(1, total - first + 1), length)
    return shown


def _shuffle(first: int, length: int, total: int, rng: np.random.Generator) -> np.ndarray:
    """In random order; neither the first nor the last frame of the stretch stays."""
    shown = np.arange(total)
    while True:
        order = rng.permutation(length)
        if order[0] != 0 and order[-1] != length - 1:
            shown[first : first + length] = first + order
            return shown


def _stutter(first: int, length: int, total: int, rng: np.random.Generator) -> np.ndarray:
    """By turns two frames too late and two too early, so that the motion jerks to and fro."""
    shown = np.arange(total)
    shown[first : first + length] += np.where(np.arange(length) % 2, -2, 2)
    return shown


MOTION_KINDS: dict[str, tuple[MotionKind, str]] = {
    "freeze": (_freeze, "the video stands still"),
    "reverse": (_reverse, "the video runs backwards"),
    "fast": (_fast, "the video runs twice as fast"),
    "shuffle": (_shuffle, "the frames come in a wrong order"),
    "stutter": (_stutter, "the motion jerks to and fro"),
}
"""Name -> which frames it shows and how one says it."""

LOUD: tuple[str, ...] = ("blur", "noise", "blocks", "invert", "grey", "dark", "bright", "upside_down")
"""Kinds that one sees in a single frame."""
KINDS: tuple[str, ...] = (*PICTURE_KINDS, *MOTION_KINDS)


def perturbed(source: np.ndarray, kind: str, first: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """A video of T frames in which frames first .. first + length - 1 are wrong, from a source (T + length, H, W, 3).

    Raises KeyError for an unknown kind.
    """
    total = len(source) - length
    assert first >= 1 and length >= 3 and first + length < total
    if kind in MOTION_KINDS:
        return source[MOTION_KINDS[kind][0](first, length, total, rng)]
    shown = source[:total].copy()
    shown[first : first + length] = PICTURE_KINDS[kind][0](shown[first : first + length], rng)
    return shown
