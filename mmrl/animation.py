"""Videos for the eye: small animated pictures that a page can show by itself."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from mmrl.tiles import within
from mmrl.video import spread, usable, write_video

SIDE, FRAMES = 256, 48
"""Most pixels of a side and most frames of a preview."""
EXACT = 64
"""Videos up to this side are kept without loss."""


def preview(video: np.ndarray, fps: float) -> tuple[np.ndarray, float]:
    """A video, uint8 (T, H, W, 3), with no side above SIDE and evenly spread frames, FRAMES at most, and the frames per second
    at which it takes as long as before."""
    kept = spread(len(video), min(FRAMES, len(video)))
    frames = np.stack([np.asarray(within(Image.fromarray(video[k]), SIDE)) for k in kept])
    return frames, fps * len(kept) / len(video)


def animated(video: np.ndarray, fps: float) -> bytes:
    """The file of an animated WebP that never ends; without loss where no side is above EXACT. Equal frames in a row are
    stored as one that stays longer."""
    first, *rest = (Image.fromarray(frame) for frame in video)
    file = io.BytesIO()
    options = {"lossless": True} if max(first.size) <= EXACT else {"quality": 80}
    first.save(
        file, format="WEBP", save_all=True, append_images=rest, duration=max(1, round(1000 / fps)), loop=0, **options
    )
    return file.getvalue()


def save_video(folder: Path, name: str, video: np.ndarray, fps: float) -> Path:
    """Write `name.mp4`, or an animated `name.webp` where there is no encoder or a side is odd (H.264 takes even ones)."""
    if usable("av") and not (video.shape[1] % 2 or video.shape[2] % 2):
        path = folder / f"{name}.mp4"
        write_video(path, video, fps)
        return path
    path = folder / f"{name}.webp"
    path.write_bytes(animated(video, fps))
    return path
