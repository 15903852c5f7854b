"""Samples as records for JSON and files beside them, nothing lossy: pictures as PNG, videos and other arrays as uint8 tensors."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors

from mmrl.errors import UserError
from mmrl.folder import write_named
from mmrl.replay.plain import plain, unplain
from mmrl.rollout import Prompt, Sample

MEDIA = "media"
"""The folder of the files; equal ones are stored once."""


def write_sample(sample: Sample, folder: Path) -> dict[str, Any]:
    """The record of a sample, its arrays written below `folder`. Media of the prompt that are paths stay paths, made absolute. Entries
    of `meta` that JSON cannot hold are named in `left_out`. Raises UserError for a target that JSON cannot hold."""
    prompt, lost = sample.prompt, list[str]()
    where = f"prompt '{prompt.id}'"
    media = [_medium(item, f"medium {number} of {where}", folder) for number, item in enumerate(prompt.media, 1)]
    return {
        "prompt": {
            "id": prompt.id,
            "text": prompt.text,
            "target": _held(prompt.target, f"the target of {where}"),
            "media": media,
            "meta": _meta(prompt.meta, "prompt.meta", lost),
        },
        "text": sample.text,
        "images": [_array(image, folder) for image in sample.images],
        "video": None if sample.video is None else _array(sample.video, folder),
        "meta": _meta(sample.meta, "meta", lost),
        "left_out": lost,
    }


def read_sample(record: Mapping[str, Any], folder: Path, arrays: dict[str, np.ndarray]) -> Sample:
    """The sample of a record; `arrays` remembers files that were read. Raises what reading a broken record or file raises."""

    def array(name: str) -> np.ndarray:
        if name not in arrays:
            arrays[name] = _opened(folder / name)
        return arrays[name]

    def medium(one: Mapping[str, Any]) -> Any:
        return array(one["file"]) if "file" in one else one["path"] if "path" in one else unplain(one["value"])

    asked = record["prompt"]
    prompt = Prompt(
        asked["id"],
        asked["text"],
        tuple(medium(one) for one in asked["media"]),
        unplain(asked["target"]),
        {key: unplain(value) for key, value in asked["meta"].items()},
    )
    return Sample(
        prompt,
        record["text"],
        tuple(array(name) for name in record["images"]),
        None if record["video"] is None else array(record["video"]),
        {key: unplain(value) for key, value in record["meta"].items()},
    )


def files_of(record: Mapping[str, Any]) -> list[str]:
    """Names of the files of a record."""
    given = [one["file"] for one in record["prompt"]["media"] if "file" in one]
    return [*given, *record["images"], *([] if record["video"] is None else [record["video"]])]


def _medium(item: Any, where: str, folder: Path) -> dict[str, Any]:
    if isinstance(item, (str, Path)):
        return {"path": os.path.abspath(item)}
    if isinstance(item, np.ndarray) and item.dtype == np.uint8:
        return {"file": _array(item, folder)}
    return {"value": _held(item, where)}


def _array(pixels: np.ndarray, folder: Path) -> str:
    """A uint8 array as a file: a picture (H, W, 3) as PNG, everything else as a tensor."""
    if pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size:
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG", compress_level=1)
        return write_named(file.getvalue(), "png", folder, MEDIA)
    data = save_tensors({"array": torch.from_numpy(np.ascontiguousarray(pixels))})
    return write_named(data, "safetensors", folder, MEDIA)


def _opened(path: Path) -> np.ndarray:
    if path.suffix == ".png":
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    found: np.ndarray = load_file(path)["array"].numpy()
    return found


def _meta(meta: Mapping[str, Any], name: str, lost: list[str]) -> dict[str, Any]:
    """The entries that JSON can hold; names of the others go into `lost`."""
    found = {}
    for key, value in meta.items():
        try:
            found[key] = plain(value)
        except TypeError:
            lost.append(f"{name}.{key}")
    return found


def _held(value: Any, what: str) -> Any:
    try:
        return plain(value)
    except TypeError as error:
        raise UserError(f"cannot store {what}: {error}; make it of numbers, texts, lists and mappings") from None
