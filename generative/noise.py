"""Noise that belongs to a sample: drawn on the CPU from the sample's own generator, one image at a time.

So a sample does not depend on the batch it is in, on the rank that draws it or on the device, and the first tensor of a
seed is what a plain diffusers pipeline draws with `torch.Generator("cpu").manual_seed(seed)` for one image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Noise:
    """One CPU generator per sample. `shape` is that of one latent, without the batch dimension."""

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device) -> None:
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self.shape = (1, *shape)
        self.device = device

    def draw(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The next standard normal of every sample `(B, *shape)`, drawn in `dtype` and returned as float32."""
        drawn = [torch.randn(self.shape, generator=g, dtype=dtype) for g in self.generators]
        return torch.cat(drawn).float().to(self.device)

    def draw_some(self, rows: Sequence[int]) -> Tensor:
        """The next standard normal of the samples `rows` alone, `(m, *shape)` float32."""
        drawn = [torch.randn(self.shape, generator=self.generators[row]) for row in rows]
        return torch.cat(drawn).to(self.device)

    def uniform(self) -> Tensor:
        """The next uniform number of every sample, `(B,)` float32 on the CPU."""
        return torch.cat([torch.rand(1, generator=g) for g in self.generators])
