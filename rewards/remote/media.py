"""Samples <-> messages: pictures as PNG, videos as uint8 tensors, nothing lossy and nothing that can run code."""

from __future__ import annotations

import base64
import binascii
import io
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from mmrl.errors import UserError
from mmrl.image import read_image
from mmrl.rewards.remote.contract import Media, RequestSample
from mmrl.rollout import Prompt, Sample

IMAGES = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}
TENSORS = "application/vnd.safetensors"
MP4 = "video/mp4"


class Refused(ValueError):
    """A medium that is not taken; the text says what it is and what is."""


@dataclass(frozen=True)
class Limits:
    """What a server takes: bytes of a body, samples of a request, pixels of a picture or frame, frames of a video, and the
    folder below which `uri` may point (None: no `uri`)."""

    max_bytes: int = 64 << 20
    max_batch: int = 64
    max_pixels: int = 4096 * 4096
    max_frames: int = 512
    root: Path | None = None


@dataclass
class Packed:
    """A sample as a message, and the parts that go beside the JSON in a multipart body (name -> (mime, bytes))."""

    sample: RequestSample
    parts: dict[str, tuple[str, bytes]] = field(default_factory=dict)


def pack(sample: Sample, id: str, group: int, multipart: bool) -> Packed:
    """A sample as a message. Raises UserError for a source medium that cannot be read."""
    media: list[Media] = []
    parts: dict[str, tuple[str, bytes]] = {}

    def add(role: Any, kind: Any, mime: str, contents: bytes, fps: float | None = None) -> None:
        if multipart:
            name = f"{id}-{len(media)}"
            parts[name] = (mime, contents)
            media.append(Media(role=role, kind=kind, mime=mime, part=name, fps=fps))
        else:
            data = base64.b64encode(contents).decode()
            media.append(Media(role=role, kind=kind, mime=mime, data=data, fps=fps))

    for item in sample.prompt.media:
        add("source", "image", "image/png", png(item if isinstance(item, np.ndarray) else read_image(Path(item))))
    for image in sample.images:
        add("output", "image", "image/png", png(image))
    if sample.video is not None:
        frames = torch.from_numpy(np.ascontiguousarray(sample.video))
        add("output", "video", TENSORS, save_tensors({"video": frames}), sample.meta.get("fps"))
    latents = sample.meta.get("latents")
    if latents is not None:
        add("output", "latent", TENSORS, save_tensors({k: v.contiguous() for k, v in latents.items()}))
    message = RequestSample(
        id=id,
        group=group,
        prompt=sample.prompt.text,
        prompt_id=sample.prompt.id,
        response=sample.text,
        reference=sample.prompt.target,
        meta={key: value for key, value in sample.prompt.meta.items() if _is_plain(value)},
        media=tuple(media),
    )
    return Packed(message, parts)


def png(image: np.ndarray) -> bytes:
    """A uint8 RGB picture as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).convert("RGB").save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def unpack(message: RequestSample, parts: Mapping[str, bytes], limits: Limits) -> Sample:
    """The sample of a message. Raises Refused for a medium that the limits do not allow or that is not what it says."""
    images: list[np.ndarray] = []
    sources: list[np.ndarray] = []
    meta: dict[str, Any] = {}
    video: np.ndarray | None = None
    for number, medium in enumerate(message.media, start=1):
        try:
            contents = _contents(medium, parts, limits)
            if medium.kind == "image":
                (sources if medium.role == "source" else images).append(_image(medium.mime, contents, limits))
            elif medium.kind == "video":
                video = _video(medium.mime, contents, limits)
                meta["fps"] = medium.fps
            else:
                meta["latents"] = _tensors(medium.mime, contents)
        except Refused as error:
            raise Refused(f"sample '{message.id}', medium {number}: {error}") from error
    prompt = Prompt(
        message.prompt_id or message.id, message.prompt, tuple(sources), message.reference, dict(message.meta)
    )
    return Sample(prompt, message.response, tuple(images), video, meta)


def _contents(medium: Media, parts: Mapping[str, bytes], limits: Limits) -> bytes:
    if medium.data is not None:
        try:
            return base64.b64decode(medium.data, validate=True)
        except binascii.Error as error:
            raise Refused(f"data is not base64: {error}") from error
    if medium.part is not None:
        if medium.part not in parts:
            raise Refused(f"there is no part '{medium.part[:60]}' in the body")
        return parts[medium.part]
    assert medium.uri is not None
    return _file(medium.uri, limits)


def _file(uri: str, limits: Limits) -> bytes:
    if limits.root is None:
        raise Refused("this server takes no uri; send data or a part")
    root = limits.root.resolve()
    path = (root / uri.removeprefix("file://")).resolve()
    if not path.is_relative_to(root) or not path.is_file():
        raise Refused("uri points to no file below the allowed folder")
    if path.stat().st_size > limits.max_bytes:
        raise Refused(f"the file is larger than {limits.max_bytes} bytes")
    return path.read_bytes()


def _image(mime: str, contents: bytes, limits: Limits) -> np.ndarray:
    if mime not in IMAGES:
        raise Refused(f"mime '{mime[:60]}' of a picture; expected one of {', '.join(IMAGES)}")
    try:
        with Image.open(io.BytesIO(contents), formats=(IMAGES[mime],)) as opened:
            width, height = opened.size
            if width * height > limits.max_pixels:
                raise Refused(f"a picture of {width}x{height} pixels; at most {limits.max_pixels} pixels are taken")
            return np.asarray(opened.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"not a readable {mime}: {str(error)[:120]}") from error


def _tensors(mime: str, contents: bytes) -> dict[str, torch.Tensor]:
    if mime != TENSORS:
        raise Refused(f"mime '{mime[:60]}'; expected {TENSORS}")
    try:
        return load_tensors(contents)
    except (SafetensorError, ValueError) as error:
        raise Refused(f"not safetensors: {str(error)[:120]}") from error


def _video(mime: str, contents: bytes, limits: Limits) -> np.ndarray:
    if mime == MP4:
        return _mp4(contents, limits)
    frames = _tensors(mime, contents).get("video")
    if frames is None or frames.dtype != torch.uint8 or frames.dim() != 4 or frames.shape[3] != 3:
        got = "none" if frames is None else f"{frames.dtype} {tuple(frames.shape)}"
        raise Refused(f"a video is a uint8 tensor 'video' (T, H, W, 3), got {got}")
    _check_video(frames.shape[0], frames.shape[1], frames.shape[2], limits)
    return frames.numpy()


def _mp4(contents: bytes, limits: Limits) -> np.ndarray:
    from mmrl.video import open_video

    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(contents)
        file.flush()
        try:
            opened = open_video(Path(file.name))
            first = opened.frames([0])
            _check_video(opened.total, first.shape[1], first.shape[2], limits)
            return opened.frames(list(range(opened.total)))
        except UserError as error:
            raise Refused(f"not a readable {MP4}: {error}") from error


def _check_video(frames: int, height: int, width: int, limits: Limits) -> None:
    if frames > limits.max_frames or height * width > limits.max_pixels:
        raise Refused(
            f"a video of {frames} frames of {width}x{height}; at most {limits.max_frames} frames of "
            f"{limits.max_pixels} pixels are taken"
        )


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold a value."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(one) for one in value)
    return value is None or isinstance(value, str | int | float | bool)
