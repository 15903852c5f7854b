"""Picture files as everybody here sees them: turned as their EXIF says, transparency laid on white."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mmrl.errors import UserError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Names of picture files end so; every other file of a prompt is a video."""


def as_rgb(image: Image.Image) -> Image.Image:
    """Any opened picture in RGB. Raises what Pillow raises for broken data, and ValueError for more than 8 bits a channel."""
    if image.mode == "F" or image.mode.startswith("I"):
        raise ValueError(f"its pixels are of mode {image.mode}; expected 8 bits a channel, so convert it first")
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def read_image(path: Path) -> np.ndarray:
    """The picture in a file as uint8 (H, W, 3). Raises UserError for a file that is missing, broken or no picture."""
    try:
        with Image.open(path) as image:
            return np.array(as_rgb(image))
    except FileNotFoundError:
        raise UserError(f"no file {path.absolute()}") from None
    except UnidentifiedImageError:
        raise UserError(f"{path.absolute()} is not a picture that can be read") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path.absolute()} is broken: {error}") from None
