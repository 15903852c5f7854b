"""Pictures as CLIP-like models want them: shortest side to `size` (bicubic, antialiased), centre crop, normalised.

One differentiable function for stored pictures and for pictures with gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def floats(pictures: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Uint8 pictures (H, W, 3) as float32 `(3, H, W)` in [0, 1]."""
    return [torch.from_numpy(np.array(one)).to(device).permute(2, 0, 1).float() / 255 for one in pictures]


def cropped(picture: Tensor, size: int, antialias: bool = True) -> Tensor:
    """`(..., 3, H, W)` in [0, 1] -> `(..., 3, size, size)`: shortest side to `size`, centre crop; rounding to bytes is left out."""
    small = F.resize(picture, [size], interpolation=InterpolationMode.BICUBIC, antialias=antialias)
    return F.center_crop(small, [size, size]).clamp(0, 1)


def normalised(picture: Tensor, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD) -> Tensor:
    """`(picture - mean) / std` per channel, `(..., 3, H, W)`."""
    m, s = (torch.tensor(list(values), device=picture.device)[:, None, None] for values in (mean, std))
    return (picture - m) / s


def clip_batch(pictures: Sequence[Tensor], size: int, antialias: bool = True) -> Tensor:
    """Pictures `(3, H, W)` of any sizes as one batch `(B, 3, size, size)` for CLIP."""
    return normalised(torch.stack([cropped(one, size, antialias) for one in pictures]))
