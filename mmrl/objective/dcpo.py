"""DCPO: a clip range that is the wider the less likely a step was."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mmrl.objective.surrogate import Diagnostics, Surrogate, clipped


def bounds(old_log_prob: Tensor, low: float, high: float, cap: float) -> tuple[Tensor, Tensor]:
    """Smallest and largest ratio of each step, from its probability q under the policy that drew it:
    `0.5 + 0.5 sqrt(max(0, 1 - 4 low / q))` and `min(cap, 0.5 + 0.5 sqrt(1 + 4 high / q))`. Source: arXiv 2509.02333."""
    q = old_log_prob.exp()
    lower = 0.5 + 0.5 * (1 - 4 * low / q).clamp(min=0).sqrt()
    upper = 0.5 + 0.5 * (1 + 4 * high / q).sqrt()
    return lower, upper.clamp(max=cap)


class Dcpo(Surrogate):
    """DCPO: the clip of PPO between bounds by the probability of each step."""

    reads_probability: ClassVar[bool] = True

    low: float = Field(default=0.16, gt=0)
    high: float = Field(default=0.2, gt=0)
    cap: float = Field(default=10.0, gt=1)
    """The largest ratio: the upper bound goes no further, and for A < 0 the loss is at most `-cap A`."""

    @property
    def clip_range(self) -> float:
        """That of a step of probability 1: the less likely a step, the wider its range."""
        lower, upper = bounds(torch.zeros((), dtype=torch.float64), self.low, self.high, self.cap)
        return min(1 - float(lower), float(upper) - 1)

    def __call__(
        self, log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, mask: Tensor
    ) -> tuple[Tensor, Diagnostics]:
        lower, upper = bounds(old_log_prob, self.low, self.high, self.cap)
        return clipped(log_prob, old_log_prob, advantage, 1 - lower, upper - 1, self.cap)
