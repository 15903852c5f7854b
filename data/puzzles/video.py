"""Video files: written with PyAV, read with decord (with PyAV where decord has no build), frames spread evenly."""

from __future__ import annotations

import importlib.util
import re
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from mmrl.data.files import existing
from mmrl.errors import UserError

SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".ogv", ".webm", ".wmv")
INSTALL = 'pip install decord'


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
    """A video file by decord, or by PyAV where decord is not installed; `reader` ("decord", "av") asks for one of them.

    Raises UserError that names the file: it is missing, no video, broken or empty.
    """
    path = existing(path)
    name = reader or ("decord" if importlib.util.find_spec("decord") is not None else "av")
    opened: VideoFile
    if name == "decord":
        decord = _module("decord", f"reading {path}")
        errors: tuple[type[Exception], ...] = (decord.DECORDError, RuntimeError)
        kind: type = _Decord
    else:
        errors = (_module("av", f"reading {path}").FFmpegError,)
        kind = _PyAv
    try:
        opened = kind(path)
    except errors as error:
        raise UserError(f"{path} is not a video that can be read: {_reason(error)}") from None
    if opened.total < 1 or not opened.fps > 0:
        raise UserError(
            f"{path} is not a video that can be read: it has {opened.total} frames at {opened.fps:g} per second"
        )
    return opened


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


def through_file(frames: np.ndarray, fps: float) -> np.ndarray:
    """The frames as they come back from a video file, uint8 of the same shape: with the small losses that a codec has."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, frames, fps)
        found, _ = read_video(path, reader="av")  # decord cannot read some widths below 80 pixels
    assert found.shape == frames.shape, f"wrote {frames.shape}, read {found.shape}"
    return found


class _Decord:
    def __init__(self, path: Path) -> None:
        import decord

        self.reader = decord.VideoReader(str(path), num_threads=1)
        self.path, self.errors = path, (decord.DECORDError, RuntimeError)
        self.total, self.fps = len(self.reader), float(self.reader.get_avg_fps())

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        _check(self, indices)
        try:
            found: np.ndarray = self.reader.get_batch(list(indices)).asnumpy()
        except self.errors as error:
            raise UserError(f"{self.path} is broken: {_reason(error)}") from None
        return found


class _PyAv:
    def __init__(self, path: Path) -> None:
        self.path = path
        with _opened(path) as container:
            stream = _stream(path, container)
            self.total = sum(1 for packet in container.demux(stream) if packet.size)
            self.fps = float(stream.average_rate or 0)

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        import av

        _check(self, indices)
        wanted, found = set(indices), {}
        try:
            with _opened(self.path) as container:
                for number, frame in enumerate(container.decode(_stream(self.path, container))):
                    if number in wanted:
                        found[number] = frame.to_ndarray(format="rgb24")
                    if len(found) == len(wanted):
                        break
        except av.FFmpegError as error:
            raise UserError(f"{self.path} is broken: {_reason(error)}") from None
        missing = sorted(wanted - set(found))
        if missing:
            raise UserError(f"{self.path} is broken: frame {missing[0]} of {self.total} cannot be read")
        return np.stack([found[number] for number in indices])


def _check(video: _Decord | _PyAv, indices: Sequence[int]) -> None:
    beyond = [index for index in indices if not 0 <= index < video.total]
    if beyond:
        raise UserError(f"{video.path} has {video.total} frames; there is no frame {beyond[0]}")


def _reason(error: Exception) -> str:
    """The first line of a library's message, without the time and the source line that decord puts before it."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"^\[[\d:]+\] \S+: (Error: )?", "", line)


def _opened(path: Path) -> Any:
    import av

    return av.open(str(path))


def _stream(path: Path, container: Any) -> Any:
    if not container.streams.video:
        raise UserError(f"{path} is not a video that can be read: it has no pictures, only sound")
    return container.streams.video[0]


def _module(name: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise UserError(f"{what} needs {name}, which is not installed: {INSTALL}") from None
