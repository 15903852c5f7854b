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

    def __call__(self, train: Tensor, step_std: Tensor | None) -> Tensor:
        """Weights `(N, S)` float32 for the trained steps `train (N, S)` bool; finite everywhere."""
        raise NotImplementedError


def relative_noise(train: Tensor, step_std: Tensor) -> Tensor:
    """`s_k / mean of s over the sample's trained steps`, `(N, S)` float32; 0 at untrained steps.

    The score of a denoising step grows with 1 / s, so that without a weight low-noise steps dominate.
    Source: TempFlow-GRPO, reconstructed from its abstract.
    """
    s = torch.where(train, step_std.to(torch.float64), 0.0)
    total, number = s.sum(dim=1, keepdim=True), train.sum(dim=1, keepdim=True)
    return torch.where(total > 0, s * number / total.clamp(min=torch.finfo(s.dtype).tiny), 0.0).to(torch.float32)


class UniformWeight(StepWeight):
    """Every trained step counts the same."""

    def __call__(self, train: Tensor, step_std: Tensor | None) -> Tensor:
        return torch.ones_like(train, dtype=torch.float32)


class NoiseWeight(StepWeight):
    """Noise-aware weights of TempFlow-GRPO: proportional to the std of the step, mean 1 over a sample's trained steps."""

    needs_std = True

    def __call__(self, train: Tensor, step_std: Tensor | None) -> Tensor:
        if step_std is None:
            raise UserError(
                "step weight 'noise' needs the noise scale of each step, which this policy does not give; use uniform"
            )
        return relative_noise(train, step_std)
