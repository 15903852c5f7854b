"""Messages -> samples, within limits that hold before anything is decoded. Nothing here can run code."""

from __future__ import annotations

import base64
import io
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load as load_tensors

from mmrl.image import as_rgb
from mmrl.rewards.remote.contract import Media, RequestSample
from mmrl.rollout import Prompt, Sample

IMAGES = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}
TENSORS = "application/vnd.safetensors"
MP4 = "video/mp4"
LEFT = ("graded", "components")
"""What rewards leave in `Sample.meta`; of a request it is not taken over."""
HEADER = 1 << 20
"""Bytes of the header of a safetensors file: one with a hundred thousand empty tensors takes seconds and gigabytes."""


class Refused(ValueError):
    """A medium that is not taken; the text says what it is and what is."""


@dataclass(frozen=True)
class Limits:
    """What a server takes: bytes of a body, samples of a request, pixels of a picture or frame, frames of a video, and the
    folder below which `uri` may point (None: no `uri`); `max_decoded` bounds the bytes of all media of a request, decoded: a small
    file may hold a large picture, and a small body many of them."""

    max_bytes: int = 64 << 20
    max_batch: int = 64
    max_pixels: int = 4096 * 4096
    max_frames: int = 512
    root: Path | None = None
    max_decoded: int = 1 << 30
    max_media: int = 4096


class Room:
    """What a request may still hold, in bytes; `take` raises Refused where there is not enough left."""

    def __init__(self, most: int) -> None:
        self.most, self.left = most, most

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise Refused(f"the media of one request hold more than {self.most} bytes when decoded; send fewer samples")


def png(image: np.ndarray) -> bytes:
    """A uint8 RGB picture as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).convert("RGB").save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def unpack(message: RequestSample, parts: Mapping[str, bytes], limits: Limits, room: Room | None = None) -> Sample:
    """The sample of a message. Raises Refused for a medium that the limits do not allow or that is not what it says."""
    room = Room(limits.max_decoded) if room is None else room
    found: dict[str, list[np.ndarray]] = {"output": [], "source": [], "reference": []}
    prompt_meta = dict(message.meta)
    meta = {key: value for key, value in message.output_meta.items() if key not in LEFT}
    for number, medium in enumerate(message.media, start=1):
        try:
            contents = _contents(medium, parts, limits)
            if medium.kind == "latent":
                meta["latents"] = _tensors(medium.mime, contents, room)
                continue
            read = _image if medium.kind == "image" else _video
            found[medium.role].append(read(medium.mime, contents, limits, room))
            if medium.fps is not None:
                (meta if medium.role == "output" else prompt_meta).setdefault("fps", medium.fps)
        except Refused as error:
            raise Refused(f"sample '{message.id}', medium {number}: {error}") from error
    images = tuple(one for one in found["output"] if one.ndim == 3)
    videos = [one for one in found["output"] if one.ndim == 4]
    if len(videos) > 1:
        raise Refused(f"sample '{message.id}': {len(videos)} videos; an output is at most one")
    if found["reference"]:
        prompt_meta["reference_media"] = tuple(found["reference"])
    id, sources = message.prompt_id or message.id, tuple(found["source"])
    prompt = Prompt(id, message.prompt, sources, message.reference, prompt_meta)
    return Sample(prompt, message.response, images, videos[0] if videos else None, meta)


def _contents(medium: Media, parts: Mapping[str, bytes], limits: Limits) -> bytes:
    if medium.data is not None:
        try:
            return base64.b64decode(medium.data, validate=True)
        except ValueError as error:
            raise Refused(f"data is not base64: {error}") from error
    if medium.part is not None:
        if medium.part not in parts:
            raise Refused(f"there is no part '{medium.part[:60]}' in the body")
        return parts[medium.part]
    assert medium.uri is not None
    return _file(medium.uri, limits)


def _file(uri: str, limits: Limits) -> bytes:
    """The file that `uri` names, wherever links lead, if it lies below the allowed folder."""
    if limits.root is None:
        raise Refused("this server takes no uri; send data or a part")
    try:
        root = limits.root.resolve()
        path = (root / uri.removeprefix("file://")).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            raise Refused("uri points to no file below the allowed folder")
        with path.open("rb") as file:
            contents = file.read(limits.max_bytes + 1)
    except Refused:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # too long a name, a zero byte, no right, links in a circle
        raise Refused("uri points to no file below the allowed folder") from error
    if len(contents) > limits.max_bytes:
        raise Refused(f"the file is larger than {limits.max_bytes} bytes")
    return contents


def _image(mime: str, contents: bytes, limits: Limits, room: Room) -> np.ndarray:
    if mime not in IMAGES:
        raise Refused(f"mime '{mime[:60]}' of a picture; expected one of {', '.join(IMAGES)}")
    try:
        with Image.open(io.BytesIO(contents), formats=(IMAGES[mime],)) as opened:
            width, height = opened.size
            if width * height > limits.max_pixels:
                raise Refused(f"a picture of {width}x{height} pixels; at most {limits.max_pixels} pixels are taken")
            room.take(3 * width * height)
            return np.asarray(as_rgb(opened))
    except Refused:
        raise
    except Exception as error:  # of broken EXIF Pillow raises whatever its own code runs into
        raise Refused(f"not a readable {mime}: {str(error)[:120]}") from error


def _tensors(mime: str, contents: bytes, room: Room) -> dict[str, torch.Tensor]:
    if mime != TENSORS:
        raise Refused(f"mime '{mime[:60]}'; expected {TENSORS}")
    room.take(len(contents))
    if len(contents) >= 8 and struct.unpack("<Q", contents[:8])[0] > HEADER:
        raise Refused(f"not safetensors: a header of more than {HEADER} bytes")
    try:
        return load_tensors(contents)
    except Exception as error:  # KeyError: a dtype that torch does not have, TypeError: a shape that it cannot
        raise Refused(f"not safetensors: {str(error)[:120]}") from error


def _video(mime: str, contents: bytes, limits: Limits, room: Room) -> np.ndarray:
    if mime == MP4:
        return _mp4(contents, limits, room)
    frames = _tensors(mime, contents, room).get("video")
    if frames is None or frames.dtype != torch.uint8 or frames.dim() != 4 or frames.shape[3] != 3:
        got = "none" if frames is None else f"{frames.dtype} {tuple(frames.shape)}"
        raise Refused(f"a video is a uint8 tensor 'video' (T, H, W, 3), got {got}")
    _check_video(frames.shape[0], frames.shape[1], frames.shape[2], limits)
    return frames.numpy()


def _mp4(contents: bytes, limits: Limits, room: Room) -> np.ndarray:
    """Read with PyAV alone: others end the process at some broken files. FFmpeg goes by what is inside, and a playlist would have it
    open other files."""
    from mmrl.video import open_video

    if contents[4:8] != b"ftyp":
        raise Refused(f"not a readable {MP4}: it does not begin as one")
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(contents)
        file.flush()
        try:
            opened = open_video(Path(file.name), "av")
            first = opened.frames([0])
            _check_video(opened.total, first.shape[1], first.shape[2], limits)
            room.take(opened.total * first[0].nbytes)
            return opened.frames(list(range(opened.total)))
        except Refused:
            raise
        except Exception as error:  # of broken names of a stream PyAV raises UnicodeDecodeError
            raise Refused(f"not a readable {MP4}: {str(error).replace(file.name, 'the file')[:300]}") from error


def _check_video(frames: int, height: int, width: int, limits: Limits) -> None:
    if not frames * height * width:
        raise Refused(f"a video of {frames} frames of {width}x{height} pixels")
    if frames > limits.max_frames or height * width > limits.max_pixels:
        raise Refused(
            f"a video of {frames} frames of {width}x{height}; at most {limits.max_frames} frames of "
            f"{limits.max_pixels} pixels are taken"
        )
