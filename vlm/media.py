"""Images and videos of a prompt -> uint8 arrays, frames of a video chosen as qwen-vl-utils chooses them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mmrl.errors import UserError
from mmrl.rollout import Prompt
from mmrl.video import open_video, spread

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
FRAME_FACTOR = 2
"""The number of frames is a multiple of this: two frames are one temporal patch."""


@dataclass(frozen=True)
class Video:
    """The sampled `frames (T, H, W, 3)` uint8 of a video of `total` frames at `fps` frames per second; frame i is number
    `indices[i]` of the video."""

    frames: np.ndarray
    fps: float
    indices: tuple[int, ...]
    total: int


Media: TypeAlias = np.ndarray | Video
"""An image `(H, W, 3)` uint8, or a video."""


@dataclass(frozen=True)
class FrameRule:
    """How many frames of a video are seen: `fps` per second, between `least` and `most`."""

    fps: float = 2.0
    least: int = 4
    most: int = 768


def frame_indices(total: int, video_fps: float, rule: FrameRule) -> tuple[int, ...]:
    """Numbers of the frames to look at, evenly spread from the first to the last.

    Source: qwen-vl-utils `smart_nframes`. Raises ValueError for a video of fewer than two frames.
    """
    if total < FRAME_FACTOR:
        raise ValueError(f"a video needs at least {FRAME_FACTOR} frames, this has {total}")
    least = math.ceil(rule.least / FRAME_FACTOR) * FRAME_FACTOR
    most = math.floor(min(rule.most, total) / FRAME_FACTOR) * FRAME_FACTOR
    wanted = min(max(total / video_fps * rule.fps, least), most, total)
    count = max(FRAME_FACTOR, math.floor(wanted / FRAME_FACTOR) * FRAME_FACTOR)
    return tuple(spread(total, count))


def load_media(prompt: Prompt, rule: FrameRule) -> list[Media]:
    """Every image and video of a prompt. Raises UserError naming the prompt and the item."""
    found: list[Media] = []
    for number, item in enumerate(prompt.media, start=1):
        where = f"prompt '{prompt.id}', medium {number}"
        if isinstance(item, np.ndarray):
            found.append(_array(item, prompt.meta.get("fps"), where, rule))
        elif isinstance(item, str | Path):
            path = Path(item)
            if not path.is_file():
                raise UserError(f"{where}: no file {path.absolute()}")
            found.append(
                _read_image(path, where) if path.suffix.lower() in IMAGE_SUFFIXES else _read_video(path, where, rule)
            )
        else:
            raise UserError(f"{where} is a {type(item).__name__}; expected a uint8 array or the path of a file")
    return found


def _array(value: np.ndarray, fps: Any, where: str, rule: FrameRule) -> Media:
    if value.dtype != np.uint8 or value.ndim not in (3, 4) or value.shape[-1] != 3:
        raise UserError(
            f"{where} is an array {value.shape} of {value.dtype}; expected uint8 (H, W, 3) or (frames, H, W, 3)"
        )
    if value.ndim == 3:
        return value
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not fps > 0:
        raise UserError(f"{where} is a video, so the prompt's meta must say its frames per second: fps is {fps!r}")
    indices = _indices(len(value), float(fps), where, rule)
    return Video(value[list(indices)], float(fps), indices, len(value))


def _indices(total: int, fps: float, where: str, rule: FrameRule) -> tuple[int, ...]:
    try:
        return frame_indices(total, fps, rule)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def _read_image(path: Path, where: str) -> np.ndarray:
    """The picture in a file, turned as its EXIF says; transparency is laid on white."""
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        raise UserError(f"{where}: {path.absolute()} is not a picture that can be read") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{where}: {path.absolute()} is broken: {error}") from None


def _read_video(path: Path, where: str, rule: FrameRule) -> Video:
    try:
        opened = open_video(path)
        indices = frame_indices(opened.total, opened.fps, rule)
        return Video(opened.frames(indices), opened.fps, indices, opened.total)
    except (UserError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None


def with_pixels(item: Media, pixels: np.ndarray) -> Media:
    """The same image or video with other pixels of the same shape."""
    return replace(item, frames=pixels) if isinstance(item, Video) else pixels


def pixels_of(item: Media) -> np.ndarray:
    """`(H, W, 3)` of an image, `(T, H, W, 3)` of a video, uint8."""
    return item.frames if isinstance(item, Video) else item
