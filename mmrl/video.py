"""Video files: written with PyAV, read with torchcodec, decord or PyAV (the first that is there and can), frames spread
evenly."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmrl.errors import UserError

SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".ogv", ".webm", ".wmv")


class VideoFile(Protocol):
    """An open video: `total` frames at `fps` frames per second."""

    total: int
    fps: float

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """The frames of these numbers (from 0), in this order, uint8 (len(indices), H, W, 3)."""
        ...


def spread(total: int, count: int) -> list[int]:
    """`count` frame numbers from the first to the last of `total`, evenly: round(linspace(0, total - 1, count)).

    Raises ValueError unless 1 <= count <= total.
    """
    if not 1 <= count <= total:
        raise ValueError(f"cannot choose {count} of {total} frames")
    return [int(number) for number in np.linspace(0, total - 1, count).round()]


def open_video(path: Path, reader: str | None = None) -> VideoFile:
    """A video file by the first of `READERS` that is installed, and by PyAV where that one fails; `reader` ("torchcodec",
    "decord", "av") asks for one of them alone.

    Raises UserError that names the file: it is missing, no video, broken or empty.
    """
    path = path.absolute()
    if not path.is_file():
        raise UserError(f"{path} is a folder; expected a file" if path.is_dir() else f"no file {path}")
    if reader is None:
        first = next((name for name in READERS if usable(name)), "av")
        return _PyAv(path) if first == "av" else _Either(path, READERS[first])
    return READERS[reader](path)


def read_video(
    path: Path, fps: float | None = None, max_frames: int | None = None, reader: str | None = None
) -> tuple[np.ndarray, float]:
    """Frames uint8 (T, H, W, 3), evenly spread over a video file, and how many of them there are per second.

    All of them, or about `fps` per second, and at most `max_frames`. Raises UserError that names the file.
    """
    opened = open_video(path, reader)
    count = opened.total if fps is None else min(opened.total, max(1, round(opened.total / opened.fps * fps)))
    count = count if max_frames is None else min(count, max(1, max_frames))
    return opened.frames(spread(opened.total, count)), opened.fps * count / opened.total


def read_clip(path: Path, frames: int | None = None, fps: float | None = None) -> tuple[np.ndarray, float]:
    """The first `frames` frames of a video file at `fps` frames per second (default: all of them, at its own rate), uint8
    (T, H, W, 3), and the rate.

    Raises UserError that names the file, also where it is too short or has fewer frames per second.
    """
    video = open_video(path)
    rate = fps or video.fps
    if rate > video.fps * (1 + 1e-6):
        raise UserError(f"{path} has {video.fps:g} frames per second; {rate:g} would repeat frames, so ask for less")
    there = int((video.total - 1) / video.fps * rate + 1e-6) + 1
    if there < (frames or 1):
        raise UserError(f"{path} has {there} frames at {rate:g} per second; expected {frames} or more")
    return video.frames([round(k * video.fps / rate) for k in range(frames or there)]), rate


def write_video(path: Path, frames: np.ndarray, fps: float) -> None:
    """Write frames, uint8 (T, H, W, 3) with even H and W, as H.264 (4:2:0, nearly without loss).

    Raises UserError for other frames, for a rate that is not positive, and where PyAV is not installed.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise UserError(f"{path}: got {frames.dtype} frames {frames.shape}; expected uint8 (T, H, W, 3)")
    if frames.shape[1] % 2 or frames.shape[2] % 2 or 0 in frames.shape:
        raise UserError(
            f"{path}: frames are {frames.shape[1]} x {frames.shape[2]} pixels; a video needs an even height and width"
        )
    if not 0 < fps < 1000:
        raise UserError(f"{path}: got {fps:g} frames per second; expected a number above 0 and below 1000")
    av = _module("av", f"writing {path}")
    with av.open(str(path), "w", format="mp4") as container:
        options = {"qp": "1", "preset": "veryfast"}  # a fixed quantizer: rate control gives another file every time
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture.reformat(format="yuv420p")))
        container.mux(stream.encode())


class _Either:
    """A reader, and PyAV from its first failure on: decord 0.6 opens videos that are 16, 24, 48 or 72 pixels wide but fails
    on their frames."""

    def __init__(self, path: Path, first: Callable[[Path], VideoFile]) -> None:
        self.path = path
        self.video: VideoFile
        try:
            self.video = first(path)
        except UserError:
            if not _installed("av"):
                raise
            self.video = _PyAv(path)
        self.total, self.fps = self.video.total, self.video.fps

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        _check(self, indices)
        try:
            return self.video.frames(indices)
        except UserError:
            if isinstance(self.video, _PyAv) or not _installed("av"):
                raise
            self.video = _PyAv(self.path)
        return self.video.frames(indices)


class _TorchCodec:
    def __init__(self, path: Path) -> None:
        decoders = _module("torchcodec.decoders", f"reading {path}")
        self.path = path
        try:
            self.reader = decoders.VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1)
            self.total = int(self.reader.metadata.num_frames or 0)
            self.fps = float(self.reader.metadata.average_fps or 0)
        except (RuntimeError, ValueError) as error:
            raise _no_video(path, _reason(error)) from None
        _check_size(self)

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        _check(self, indices)
        try:
            found: np.ndarray = self.reader.get_frames_at(list(indices)).data.numpy()
        except (RuntimeError, IndexError, ValueError) as error:
            raise UserError(f"{self.path} is broken: {_reason(error)}") from None
        return found


class _Decord:
    def __init__(self, path: Path) -> None:
        decord = _module("decord", f"reading {path}")
        self.path, self.errors = path, (decord.DECORDError, RuntimeError)
        try:
            self.reader = decord.VideoReader(str(path), num_threads=1)
            self.total, self.fps = len(self.reader), float(self.reader.get_avg_fps())
        except self.errors as error:
            raise _no_video(path, _reason(error)) from None
        _check_size(self)

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        _check(self, indices)
        try:
            found: np.ndarray = self.reader.get_batch(list(indices)).asnumpy()
        except self.errors as error:
            raise UserError(f"{self.path} is broken: {_reason(error)}") from None
        return found


class _PyAv:
    def __init__(self, path: Path) -> None:
        self.av = _module("av", f"reading {path}")
        self.path = path
        try:
            with self.av.open(str(path)) as container:
                stream = _stream(path, container)
                self.total = sum(1 for packet in container.demux(stream) if packet.size)
                self.fps = float(stream.average_rate or 0)
        except self.av.FFmpegError as error:
            raise _no_video(path, _reason(error)) from None
        _check_size(self)

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        _check(self, indices)
        wanted, found = set(indices), {}
        try:
            with self.av.open(str(self.path)) as container:
                for number, frame in enumerate(container.decode(_stream(self.path, container))):
                    if number in wanted:
                        found[number] = frame.to_ndarray(format="rgb24")
                    if len(found) == len(wanted):
                        break
        except self.av.FFmpegError as error:
            raise UserError(f"{self.path} is broken: {_reason(error)}") from None
        missing = sorted(wanted - set(found))
        if missing:
            raise UserError(f"{self.path} is broken: frame {missing[0]} of {self.total} cannot be read")
        return np.stack([found[number] for number in indices])


READERS: dict[str, Callable[[Path], VideoFile]] = {"torchcodec": _TorchCodec, "decord": _Decord, "av": _PyAv}


@functools.cache
def usable(name: str) -> bool:
    """Whether a reader is installed and can be imported (torchcodec cannot where FFmpeg's libraries are missing)."""
    if not _installed(name):
        return False
    try:
        importlib.import_module("torchcodec.decoders" if name == "torchcodec" else name)
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _no_video(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is not a video that can be read: {reason}")


def _check_size(video: _TorchCodec | _Decord | _PyAv) -> None:
    if video.total < 1 or not video.fps > 0:
        raise _no_video(video.path, f"it has {video.total} frames at {video.fps:g} per second")


def _check(video: _Either | _TorchCodec | _Decord | _PyAv, indices: Sequence[int]) -> None:
    beyond = [index for index in indices if not 0 <= index < video.total]
    if beyond:
        raise UserError(f"{video.path} has {video.total} frames; there is no frame {beyond[0]}")


def _reason(error: Exception) -> str:
    """The first line of a library's message, without the time and the source line that decord puts before it."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"^\[[\d:]+\] \S+: (Error: )?", "", line)


def _stream(path: Path, container: Any) -> Any:
    if not container.streams.video:
        raise _no_video(path, "it has no pictures, only sound")
    return container.streams.video[0]


def _module(name: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        name = name.partition(".")[0]
        raise UserError(f"{what} needs {name}, which is not installed: pip install {name}") from None
