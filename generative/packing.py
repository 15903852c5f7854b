"""2x2 latent patches as tokens (FLUX, Qwen-Image): channel-major, `(B, C, h, w) <-> (B, hw/4, 4C)`."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_latents(latents: Tensor) -> Tensor:
    """`(B, C, h, w) -> (B, hw/4, 4C)`, each token holding C blocks of 2x2 values. Raises ValueError on odd sizes."""
    b, c, h, w = latents.shape
    if h % 2 or w % 2:
        raise ValueError(f"latents of {h}x{w} cannot be cut into 2x2 patches; both sides must be even")
    return latents.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack_latents(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack_latents` for latents of `height` x `width`: `(B, hw/4, 4C) -> (B, C, h, w)`."""
    b, _, d = tokens.shape
    blocks = tokens.reshape(b, height // 2, width // 2, d // 4, 2, 2)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(b, d // 4, height, width)


def image_ids(height: int, width: int) -> Tensor:
    """Position ids `(hw/4, 3)` float32 = (0, row, column) of the patches of `height` x `width` latents."""
    ids = torch.zeros(height // 2, width // 2, 3)
    ids[..., 1] += torch.arange(height // 2)[:, None]
    ids[..., 2] += torch.arange(width // 2)[None, :]
    return ids.reshape(-1, 3)
