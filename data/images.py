"""Pictures from files, bytes and libraries -> uint8 RGB arrays."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mmrl import image

SUFFIXES = image.SUFFIXES


def read_image(path: Path, size: int | None = None) -> np.ndarray:
    """The picture in a file as uint8 (H, W, 3), turned as its EXIF says; transparency is laid on white.

    With `size` the shorter side is scaled to `size` pixels (bicubic) and the middle is cut out: (size, size, 3).
    Raises UserError for a file that is missing, broken or no picture.
    """
    picture = image.read_image(path)
    return picture if size is None else fitted(picture, size)


def fitted(picture: np.ndarray, size: int) -> np.ndarray:
    """A uint8 picture (H, W, 3) as (size, size, 3): the shorter side scaled to `size` (bicubic), the middle cut out."""
    return np.asarray(ImageOps.fit(Image.fromarray(picture), (size, size), Image.Resampling.BICUBIC))


def as_array(value: Any) -> np.ndarray:
    """A PIL image, uint8 array, encoded bytes or {"bytes": ...} as uint8 RGB. Raises TypeError, ValueError, OSError."""
    if isinstance(value, Image.Image):
        return _to_rgb(value)
    if isinstance(value, Mapping) and value.get("bytes") is not None:
        value = value["bytes"]
    if isinstance(value, bytes):
        with Image.open(io.BytesIO(value)) as picture:
            return _to_rgb(picture)
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim in (3, 4) and value.shape[-1] == 3:
        return value
    raise TypeError(f"got {type(value).__name__}; expected a file name, an image or its bytes")


def _to_rgb(picture: Image.Image) -> np.ndarray:
    return np.asarray(image.as_rgb(picture))
