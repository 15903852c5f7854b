"""Where the frames of video puzzles come from: coloured things that move, or stretches of a user's videos."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from mmrl.data.files import DataPath, existing
from mmrl.data.puzzles.draw import Thing, canvas, kinds_of_things, paint
from mmrl.data.puzzles.puzzle import Pictures, PuzzleMaker
from mmrl.errors import UserError
from mmrl.video import SUFFIXES, VideoFile, open_video, read_video, write_video

Motion = Literal["once", "bounce"]
WIDER = 1.3
"""Side of a background picture as a multiple of the frame's, which slides over it."""


def moving_shapes(
    rng: np.random.Generator,
    frames: int,
    size: int,
    things: int = 4,
    motion: Motion = "bounce",
    background: np.ndarray | None = None,
) -> np.ndarray:
    """Different things, each with a motion of its own: uint8 (frames, size, size, 3).

    `once`: each crosses the frame in a straight line from the first frame to the last, so that no two moments are alike
    and each goes on from the one before. `bounce`: each is reflected at the edges, 2 to 5 % of the side per frame.
    `background`: uint8 (H, H, 3) with H >= size, over which the frame slides from one corner to another; plain if None.
    """
    clip = _sliding(rng, frames, size, background)
    for color, shape in kinds_of_things(rng, things):
        radius = float(rng.uniform(0.09, 0.13)) * size
        path = (_crossing if motion == "once" else _bouncing)(rng, frames, size, radius)
        for frame, (x, y) in zip(clip, path, strict=True):
            paint(frame, Thing(color, shape, float(x), float(y), radius))
    return clip


def _sliding(rng: np.random.Generator, frames: int, size: int, background: np.ndarray | None) -> np.ndarray:
    if background is None:
        return np.repeat(canvas(size, size)[None], frames, axis=0)
    slack = len(background) - size
    corners = np.array([(0, 0), (0, slack), (slack, slack), (slack, 0)])
    first = int(rng.integers(4))
    start, end = corners[first], corners[(first + int(rng.integers(1, 4))) % 4]
    along = np.linspace(0, 1, frames)[:, None]
    at = np.rint(start + along * (end - start)).astype(int)
    return np.stack([background[top : top + size, left : left + size] for top, left in at])


def _crossing(rng: np.random.Generator, frames: int, size: int, radius: float) -> np.ndarray:
    """Centres (frames, 2) on a straight line through the middle part of the frame."""
    angle, aside = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3) * size
    forward = np.array([np.cos(angle), np.sin(angle)])
    along = np.linspace(-0.5, 0.5, frames)[:, None] * (size - 2 * radius)
    return size / 2 + along * forward + aside * np.array([-forward[1], forward[0]])


def _bouncing(rng: np.random.Generator, frames: int, size: int, radius: float) -> np.ndarray:
    """Centres (frames, 2) that never leave [radius, size - radius]."""
    room = size - 2 * radius
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.02, 0.05) * size
    free = rng.uniform(0, room, size=2) + np.arange(frames)[:, None] * speed * np.array([np.cos(angle), np.sin(angle)])
    folded = np.mod(free, 2 * room)  # a reflection at each edge is a triangle wave
    return radius + np.where(folded <= room, folded, 2 * room - folded)


class VideoMaker(PuzzleMaker):
    """Base of the puzzles about videos: where their frames come from, and how they are given."""

    size: int = Field(default=112, ge=32, le=1024, multiple_of=2)
    """Side of the frames in pixels."""
    fps: float = Field(default=4.0, gt=0, le=60)
    """Frames per second. A model that looks at two frames per second sees about every second one at 4."""
    videos: DataPath | None = None
    """A folder of videos (with those below it), of which random stretches are taken; without it clips are drawn."""
    background: Literal["plain", "pictures"] = "plain"
    """What drawn things move over: a dark plain, or the mixture's pictures, over which the frame slides."""
    through_file: bool = True
    """Write every clip to a video file and read it back, so that puzzles have the losses of a codec."""

    @model_validator(mode="after")
    def _has_videos(self) -> VideoMaker:
        if self.videos is not None:
            video_files(self.videos)
        return self

    def clip(
        self, rng: np.random.Generator, frames: int, pictures: Pictures, things: int, motion: Motion
    ) -> np.ndarray:
        """A new clip, uint8 (frames, size, size, 3). Raises UserError for a file that cannot be read or is too short."""
        if self.videos is not None:
            return _stretch(rng, _listed(self.videos), frames, self.fps, self.size)
        wide = None if self.background == "plain" else pictures.draw(rng, round(WIDER * self.size))
        return moving_shapes(rng, frames, self.size, things, motion, wide)

    def filmed(self, frames: np.ndarray) -> np.ndarray:
        """The frames of a finished clip as the option `through_file` says."""
        return through_file(frames, self.fps) if self.through_file else frames


def through_file(frames: np.ndarray, fps: float) -> np.ndarray:
    """The frames as they come back from a video file, uint8 of the same shape: with the small losses that a codec has."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, frames, fps)
        found, _ = read_video(path, reader="av")  # one reader for every size, so that puzzles are the same everywhere
    assert found.shape == frames.shape, f"wrote {frames.shape}, read {found.shape}"
    return found


def video_files(folder: Path) -> tuple[Path, ...]:
    """Every video in a folder and below, sorted. Raises UserError if there is none."""
    found = tuple(sorted(path for path in existing(folder, folder=True).rglob("*") if path.suffix.lower() in SUFFIXES))
    if not found:
        raise UserError(f"no video in {folder.absolute()} (looked for {', '.join(SUFFIXES)})")
    return found


_listed = functools.lru_cache(maxsize=8)(video_files)


@functools.lru_cache(maxsize=8)
def _open(path: Path) -> VideoFile:
    return open_video(path)


def _stretch(rng: np.random.Generator, files: tuple[Path, ...], frames: int, fps: float, size: int) -> np.ndarray:
    """A random stretch of a random video that is long enough; its middle square, scaled to `size`."""
    for number in rng.permutation(len(files)):
        video = _open(files[int(number)])
        step = video.fps / fps
        room = video.total - 1 - round((frames - 1) * step)
        if step < 0.999 or room < 0:  # too few frames per second would repeat some, and a repeated frame is an anomaly
            continue
        first = int(rng.integers(room + 1))
        found = video.frames([first + round(k * step) for k in range(frames)])
        return np.stack([_square(frame, size) for frame in found])
    raise UserError(
        f"none of {len(files)} videos in the folder of {files[0]} has {frames} frames at {fps:g} per second "
        f"({frames / fps:.1f} s); add longer ones, or lower the level or fps"
    )


def _square(frame: np.ndarray, size: int) -> np.ndarray:
    side = min(frame.shape[:2])
    top, left = (frame.shape[0] - side) // 2, (frame.shape[1] - side) // 2
    part = Image.fromarray(frame[top : top + side, left : left + side])
    return np.asarray(part.resize((size, size), Image.Resampling.BICUBIC))
