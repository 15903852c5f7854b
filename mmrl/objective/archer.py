"""Archer: a wider clip range where the policy was uncertain."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mmrl.objective.batch import UnitBatch
from mmrl.objective.surrogate import Diagnostics, Surrogate, clipped


def uncertain(entropy: Tensor, mask: Tensor, quantile: float) -> Tensor:
    """Steps of `mask (n, s)` bool whose `entropy (n, s)` is above the `quantile` (linear) of their own row, `(n, s)` bool.

    Source: wizard-III/Archer2.0, where the mask of the others has the name of these.
    """
    bound = torch.nanquantile(entropy.double().masked_fill(~mask, torch.nan), quantile, dim=1, keepdim=True)
    return mask & (entropy > bound)


class ByEntropy(Surrogate):
    """Base of surrogates whose clip range depends on the entropy that a step had when it was drawn."""

    whole_samples: ClassVar[bool] = True

    certain: float = Field(default=0.2, gt=0, le=1)
    """Range of the steps at or below the quantile, on either side of 1."""
    uncertain: float = Field(default=0.4, gt=0, le=1)
    """Range of the steps above it."""
    quantile: float = Field(default=0.8, ge=0, le=1)
    """Of the entropies of a sample's trained steps."""

    @property
    def clip_range(self) -> float:
        return min(self.certain, self.uncertain)

    @property
    def measures(self) -> tuple[str, ...]:
        return ("entropy",)

    def width(self, batch: UnitBatch) -> Tensor:
        """The clip range of each step, `(n, s)`."""
        above = uncertain(batch.measured["entropy"], batch.mask, self.quantile)
        return torch.full_like(batch.advantage, self.certain).masked_fill(above, self.uncertain)


class Archer(ByEntropy):
    """The clip of PPO with a range by entropy. Its KL is `{name: kl, coef: 0.001, on: certain}`."""

    def of_batch(self, log_prob: Tensor, old_log_prob: Tensor, batch: UnitBatch) -> tuple[Tensor, Diagnostics]:
        width = self.width(batch)
        return clipped(log_prob, old_log_prob, batch.advantage, width, width)
