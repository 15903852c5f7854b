"""Samples -> messages: pictures as PNG, videos and latents as safetensors, nothing lossy."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors.torch import save as save_tensors

from mmrl.image import SUFFIXES, read_image
from mmrl.reward import rgb
from mmrl.rewards.remote.contract import Media, RequestSample
from mmrl.rewards.remote.media import MP4, TENSORS, png
from mmrl.rollout import Sample
from mmrl.video import open_video

OWN = ("fps", "latents", "graded", "components", "answer")
"""Facts about an output that travel with its media, or belong to other rewards."""
REFERENCES = "reference_media"
"""The entry of `Prompt.meta` with pictures and videos that an output is compared with."""


HEADING = 256
"""Bytes, at most, that a part of a multipart body takes beside its contents and twice its name."""


@dataclass
class Packed:
    """A sample as a message, and the parts that go beside the JSON in a multipart body (name -> (mime, bytes)); `size`: the bytes
    that it adds to a body, at most."""

    sample: RequestSample
    parts: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    size: int = 0


def pack(sample: Sample, id: str, group: int, multipart: bool) -> Packed:
    """A sample as a message. Raises ValueError or UserError for what is no picture or video, for a target that JSON cannot hold, and
    for text that UTF-8 cannot; facts of `meta` that JSON cannot hold stay here."""
    media: list[Media] = []
    parts: dict[str, tuple[str, bytes]] = {}

    def add(role: Any, item: Any, fps: float | None = None) -> None:
        kind, mime, contents, own = _medium(item)
        way: dict[str, Any] = {"kind": kind, "fps": (own if fps is None else fps) if kind == "video" else None}
        if multipart:
            way["part"] = f"{id}-{len(media)}"
            parts[way["part"]] = (mime, contents)
        else:
            way["data"] = base64.b64encode(contents).decode()
        media.append(Media(role=role, mime=mime, **way))

    for item in sample.prompt.media:
        add("source", item, sample.prompt.meta.get("fps"))
    for item in sample.prompt.meta.get(REFERENCES, ()):
        add("reference", item, sample.prompt.meta.get("fps"))
    for image in sample.images:
        add("output", rgb(image))
    if sample.video is not None:
        add("output", sample.video, sample.meta.get("fps"))
    if sample.meta.get("latents") is not None:
        add("output", sample.meta["latents"])
    prompt = sample.prompt
    if not _is_plain(prompt.target):
        raise ValueError(
            f"the target of prompt '{prompt.id}' is nothing that JSON can hold: {repr(prompt.target)[:80]}"
        )
    said: dict[str, Any] = {
        "prompt": prompt.text,
        "prompt_id": prompt.id,
        "response": sample.text,
        "reference": prompt.target,
        "meta": {key: value for key, value in prompt.meta.items() if key != REFERENCES and _is_plain(value)},
        "output_meta": {key: value for key, value in sample.meta.items() if key not in OWN and _is_plain(value)},
    }
    _check_text(said)
    try:
        message = RequestSample(id=id, group=group, media=tuple(media), **said)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"prompt '{prompt.id}' does not fit a request: {first['loc']}: {first['msg']}") from error
    return Packed(message, parts, _size(message, parts))


def _check_text(said: Mapping[str, Any]) -> None:
    """Raises ValueError for text that UTF-8 cannot hold: a half of a surrogate pair, as a cut escape leaves it."""
    for name, value in said.items():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            found = ascii(error.object[error.start : error.start + 1])
            raise ValueError(
                f"{name} of prompt {said['prompt_id']!a} holds {found}, a lone surrogate that UTF-8 cannot hold; clean the data"
            ) from error


def _size(message: RequestSample, parts: Mapping[str, tuple[str, bytes]]) -> int:
    """Bytes of a message in a body, without serialising its media a second time; of base64 every character is one byte."""
    light = message.model_copy(
        update={
            "media": tuple(one if one.data is None else one.model_copy(update={"data": ""}) for one in message.media)
        }
    )
    text = len(light.model_dump_json(exclude_defaults=True).encode()) + 1
    inside = sum(len(one.data or "") for one in message.media)
    return text + inside + sum(HEADING + 2 * len(name) + len(contents) for name, (_, contents) in parts.items())


def _medium(item: Any) -> tuple[str, str, bytes, float | None]:
    """(kind, mime, contents, frames per second where the file says them) of a picture, a video, or latents by name."""
    if isinstance(item, Mapping):
        return "latent", TENSORS, save_tensors({name: value.contiguous() for name, value in item.items()}), None
    if isinstance(item, str | Path):
        path = Path(item)
        if path.suffix.lower() in SUFFIXES or not path.is_file():
            return "image", "image/png", png(read_image(path)), None
        if path.suffix.lower() != ".mp4":
            raise ValueError(f"{path.absolute()}: only videos in .mp4 files can be sent; convert it")
        return "video", MP4, path.read_bytes(), open_video(path).fps
    if isinstance(item, np.ndarray) and item.ndim == 4:
        if item.dtype != np.uint8 or item.shape[3] != 3 or not item.size:
            raise ValueError(f"expected a uint8 RGB video (T, H, W, 3), got {item.dtype} array {item.shape}")
        return "video", TENSORS, save_tensors({"video": torch.from_numpy(np.ascontiguousarray(item))}), None
    return "image", "image/png", png(rgb(item)), None


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold a value as it is."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return _same(json.loads(text), value)


def _same(told: Any, value: Any) -> bool:
    """Whether what JSON gives back is the value; a tuple may be a list."""
    if isinstance(value, Mapping):
        return (
            isinstance(told, Mapping) and told.keys() == value.keys() and all(_same(told[k], value[k]) for k in value)
        )
    if isinstance(value, list | tuple):
        return isinstance(told, list) and all(_same(a, b) for a, b in zip(told, value, strict=True))
    return bool(told == value)
