"""Images and videos of a prompt -> uint8 arrays, frames of a video chosen as qwen-vl-utils chooses them."""

from __future__ import annotations

import inspect
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from mmrl.errors import UserError
from mmrl.image import SUFFIXES, read_image
from mmrl.rollout import Prompt
from mmrl.video import open_video, spread

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
    """What is seen of a video: `fps` frames per second, between `least` and `most` of them, each resized to between
    `min_pixels` and `max_pixels`."""

    fps: float = 2.0
    least: int = 4
    most: int = 768
    min_pixels: int | None = None
    max_pixels: int | None = None


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


def frame_size(height: int, width: int, factor: int, rule: FrameRule) -> tuple[int, int]:
    """Multiples of `factor` within the rule's bounds that keep the proportions.

    Source: qwen-vl-utils `smart_resize`.
    """
    new = [max(factor, round(side / factor) * factor) for side in (height, width)]
    if rule.max_pixels is not None and new[0] * new[1] > rule.max_pixels:
        shrink = math.sqrt(height * width / rule.max_pixels)
        new = [max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)]
    elif rule.min_pixels is not None and new[0] * new[1] < rule.min_pixels:
        grow = math.sqrt(rule.min_pixels / (height * width))
        new = [math.ceil(side * grow / factor) * factor for side in (height, width)]
    return new[0], new[1]


def bounds_whole_videos(video_processor: Any) -> bool:
    """Whether a processor's `size` bounds the pixels of all frames of a video together (Qwen3-VL), not of each (Qwen2-VL)."""
    for kind in type(video_processor).__mro__:
        if (resize := getattr(sys.modules[kind.__module__], "smart_resize", None)) is not None:
            return "num_frames" in inspect.signature(resize).parameters
    return True


def load_media(prompt: Prompt, rule: FrameRule, pixels: bool = True) -> list[Media]:
    """Every image and video of a prompt. Raises UserError naming the prompt and the item.

    Without `pixels` those of files are black and as large as the file says, a picture as before its EXIF turns it; one frame
    of a video is decoded for that.
    """
    found: list[Media] = []
    for number, item in enumerate(prompt.media, start=1):
        where = f"prompt '{prompt.id}', medium {number}"
        if isinstance(item, np.ndarray):
            found.append(_array(item, prompt.meta.get("fps"), where, rule))
        elif isinstance(item, str | Path):
            path = Path(item)
            if not path.is_file():
                raise UserError(f"{where}: no file {path.absolute()}")
            read = _read_image if path.suffix.lower() in SUFFIXES else _read_video
            found.append(read(path, where, rule, pixels))
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


def _read_image(path: Path, where: str, rule: FrameRule, pixels: bool) -> np.ndarray:
    if not pixels:
        try:
            with Image.open(path) as opened:
                return black(opened.height, opened.width, 3)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            pass  # said by the reader
    try:
        return read_image(path)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _read_video(path: Path, where: str, rule: FrameRule, pixels: bool) -> Video:
    try:
        opened = open_video(path)
        indices = frame_indices(opened.total, opened.fps, rule)
        frames = opened.frames(indices) if pixels else black(len(indices), *opened.frames(indices[:1]).shape[1:])
        return Video(frames, opened.fps, indices, opened.total)
    except (UserError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None


def black(*shape: int) -> np.ndarray:
    """Zeros of this shape that take no memory."""
    return np.broadcast_to(np.uint8(0), shape)


def with_pixels(item: Media, pixels: np.ndarray) -> Media:
    """The same image or video with other pixels."""
    return replace(item, frames=pixels) if isinstance(item, Video) else pixels


def pixels_of(item: Media) -> np.ndarray:
    """`(H, W, 3)` of an image, `(T, H, W, 3)` of a video, uint8."""
    return item.frames if isinstance(item, Video) else item


def resized(item: Media, size: tuple[int, int]) -> Media:
    """An image or video of this height and width."""
    pixels = pixels_of(item)
    if pixels.shape[-3:-1] == size:
        return item
    if not any(pixels.strides):
        return with_pixels(item, black(*pixels.shape[:-3], *size, 3))
    frames = pixels if pixels.ndim == 4 else pixels[None]
    scaled = [np.asarray(Image.fromarray(f).resize((size[1], size[0]), Image.Resampling.BICUBIC)) for f in frames]
    return with_pixels(item, np.stack(scaled) if pixels.ndim == 4 else scaled[0])
