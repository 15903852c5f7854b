"""Pictures as CLIP-like models want them: by default shortest side to `size` (bicubic, antialiased), centre crop, normalised.

One differentiable function for stored pictures and for pictures with gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from mmrl.errors import UserError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def floats(pictures: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Uint8 pictures (H, W, 3) as float32 `(3, H, W)` in [0, 1]."""
    return [torch.from_numpy(np.array(one)).to(device).permute(2, 0, 1).float() / 255 for one in pictures]


@dataclass(frozen=True)
class Form:
    """How a checkpoint takes its pictures, besides their size: the default is CLIP's."""

    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[float] = CLIP_STD
    interpolation: str = "bicubic"
    squash: bool = False
    """Both sides to the size, instead of the shortest side and a centre crop."""
    antialias: bool = True
    clamp: bool = True
    """Back into [0, 1] after resizing, as pictures of bytes are; bicubic resizing overshoots at edges."""


def cropped(picture: Tensor, size: int, form: Form = Form()) -> Tensor:
    """`(..., 3, H, W)` in [0, 1] -> `(..., 3, size, size)`: shortest side to `size`, centre crop; rounding to bytes is left out."""
    sides = [size, size] if form.squash else [size]
    small = F.resize(picture, sides, interpolation=InterpolationMode(form.interpolation), antialias=form.antialias)
    small = F.center_crop(small, [size, size])
    return small.clamp(0, 1) if form.clamp else small


def normalised(picture: Tensor, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD) -> Tensor:
    """`(picture - mean) / std` per channel, `(..., 3, H, W)`."""
    m, s = (torch.tensor(list(values), device=picture.device)[:, None, None] for values in (mean, std))
    return (picture - m) / s


def clip_batch(pictures: Sequence[Tensor], size: int, form: Form = Form()) -> Tensor:
    """Pictures `(3, H, W)` of any sizes as one batch `(B, 3, size, size)` for CLIP."""
    return normalised(torch.stack([cropped(one, size, form) for one in pictures]), form.mean, form.std)


def form_of(path: str, revision: str | None, size: int) -> Form:
    """What `preprocessor_config.json` of a CLIP says. Raises UserError where it is not there, or says another size, interpolation or crop."""
    from transformers import CLIPImageProcessor

    kind: Any = CLIPImageProcessor
    try:
        found = kind.from_pretrained(path, revision=revision)
    except (OSError, ValueError) as error:
        raise UserError(
            f"'{path}' has no preprocessor_config.json that can be read, which says how its pictures are prepared; put that of the "
            f"checkpoint there: {str(error).splitlines()[0]}"
        ) from error
    crop = found.crop_size
    got = (found.size.shortest_edge, crop.height, crop.width, int(found.resample), found.do_center_crop)
    if got != (size, size, size, 3, True):
        raise UserError(
            f"preprocessor_config.json of '{path}': expected the shortest side and a centre crop at {size} pixels, bicubic (3), as "
            f"the model has it; got side {got[0]}, crop {got[1]} x {got[2]} ({got[4]}), resample {got[3]}"
        )
    return Form(tuple(found.image_mean), tuple(found.image_std))
