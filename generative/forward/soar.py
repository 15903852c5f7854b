"""SOAR: supervised training on the points that the model itself reaches, one step from the data's path, led back to the data."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from mmrl.generative.transition import expand


class Soar(BaseModel):
    """The `soar:` block of `train:`. A guided step of the model leaves the path from data to noise; `draws` points between where
    it ends and the same noise are trained to lead back to the data."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    lam: float = Field(default=1.0, ge=0)
    """Weight of each of these points beside that of the path (1). 0 is plain supervised training."""
    draws: int = Field(default=6, ge=1)
    guidance_scale: float = Field(default=4.5, ge=1)
    """Guidance of the step, which has no gradient."""
    num_steps: int = Field(default=40, ge=1)
    """The step is one of as many, before the shift."""


def stray(x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Where an Euler step with velocity v goes from `x (B, ...)` at `sigma (B,)`: `x + (sigma' - sigma) v`."""
    return x + (expand(sigma_next, x) - expand(sigma, x)) * v


def between(stray: Tensor, noise: Tensor, sigma: Tensor, level: Tensor) -> Tensor:
    """The point at `level (B,)` between `stray (B, ...)`, which is at `sigma (B,)`, and the noise, at 1:
    `zh + (level - sigma) / (1 - sigma) (z1 - zh)`; on the path of the data where zh is."""
    share = (level - sigma) / (1 - sigma)
    return stray + expand(share, stray) * (noise - stray)


def mixed(path: Tensor, others: Tensor, lam: float) -> Tensor:
    """`(path + lam sum of others) / (1 + lam K)` `(B,)` of the errors on the path `(B,)` and of K points `(K, B)`.

    Source: HY-SOAR, `soar/utils/algorithm.py`, where sums and counts are of the batch."""
    return (path + lam * others.sum(0)) / (1 + lam * len(others))


def levels_above(sigma: Tensor, uniform: Tensor) -> Tensor:
    """Uniform levels in [sigma, 1] from `uniform (B,)` in [0, 1]."""
    return sigma + (1 - sigma) * uniform.to(torch.float32)
