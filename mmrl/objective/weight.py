"""Step weights: how much the policy loss of each trained step counts. They do not multiply KL or other terms."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mmrl.components import Component
from mmrl.errors import UserError


class StepWeight(Component):
    """Base of the kind `weight`."""

    needs_std: ClassVar[bool] = False
    """It reads the noise scale of each step."""

    def __call__(self, train: Tensor, step_std: Tensor | None, sums: Tensor | None = None) -> Tensor:
        """Weights `(N, S)` float32 for the trained steps `train (N, S)` bool; finite everywhere. `sums (2, S)` are those of
        `noise_sums` over all samples of all ranks; by default those of these samples."""
        raise NotImplementedError


def noise_sums(train: Tensor, step_std: Tensor) -> Tensor:
    """Of every step the sum of its std over the samples that train it, and their number, `(2, S)` float64."""
    s = torch.where(train, step_std.to(torch.float64), 0.0)
    return torch.stack([s.sum(dim=0), train.sum(dim=0).to(torch.float64)])


def relative_noise(train: Tensor, step_std: Tensor, sums: Tensor) -> Tensor:
    """`s_k / mean of s over the distinct steps that are trained`, `(N, S)` float32; 0 at untrained steps.

    The mean is over steps, not over the steps of one sample: where every sample trains a single step (fan-out) it still tells
    the steps apart. The score of a denoising step grows with 1 / s, so that without a weight low-noise steps dominate.
    Source: TempFlow-GRPO, reconstructed from its abstract.
    """
    total, number = sums.to(train.device)
    trained = number > 0
    mean = (total / number.clamp(min=1)).sum() / trained.sum().clamp(min=1)
    s = torch.where(train, step_std.to(torch.float64), 0.0)
    return torch.where(mean > 0, s / mean.clamp(min=torch.finfo(s.dtype).tiny), 0.0).to(torch.float32)


class UniformWeight(StepWeight):
    """Every trained step counts the same."""

    def __call__(self, train: Tensor, step_std: Tensor | None, sums: Tensor | None = None) -> Tensor:
        return torch.ones_like(train, dtype=torch.float32)


class NoiseWeight(StepWeight):
    """Noise-aware weights of TempFlow-GRPO: proportional to the std of the step, mean 1 over the steps that are trained."""

    needs_std = True

    def __call__(self, train: Tensor, step_std: Tensor | None, sums: Tensor | None = None) -> Tensor:
        if step_std is None:
            raise UserError(
                "step weight 'noise' needs the noise scale of each step, which this policy does not give; use uniform"
            )
        return relative_noise(train, step_std, noise_sums(train, step_std) if sums is None else sums)
