"""Pictures from files, bytes and libraries -> uint8 RGB arrays."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mmrl.errors import UserError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def read_image(path: Path, size: int | None = None) -> np.ndarray:
    """The picture in a file as uint8 (H, W, 3), turned as its EXIF says; transparency is laid on white.

    With `size` the shorter side is scaled to `size` pixels (bicubic) and the middle is cut out: (size, size, 3).
    Raises UserError for a file that is missing, broken or no picture.
    """
    try:
        with Image.open(path) as image:
            return _to_rgb(image, size)
    except FileNotFoundError:
        raise UserError(f"no file {path.absolute()}") from None
    except UnidentifiedImageError:
        raise UserError(f"{path.absolute()} is not a picture that can be read") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path.absolute()} is broken: {error}") from None


def as_array(value: Any) -> np.ndarray:
    """A PIL image, uint8 array, encoded bytes or {"bytes": ...} as uint8 RGB. Raises TypeError, ValueError, OSError."""
    if isinstance(value, Image.Image):
        return _to_rgb(value)
    if isinstance(value, Mapping) and value.get("bytes") is not None:
        value = value["bytes"]
    if isinstance(value, bytes):
        with Image.open(io.BytesIO(value)) as image:
            return _to_rgb(image)
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim in (3, 4) and value.shape[-1] == 3:
        return value
    raise TypeError(f"got {type(value).__name__}; expected a file name, an image or its bytes")


def _to_rgb(image: Image.Image, size: int | None = None) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("RGB")
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)
