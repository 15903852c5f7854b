"""Entropy of the steps: as a bonus in the loss, and as the choice of the steps that are trained."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mmrl.errors import RunError
from mmrl.objective.batch import UnitBatch
from mmrl.objective.steps import StepSelector
from mmrl.objective.terms import Divergence, Part, Replays, Term
from mmrl.rollout import StepOutput


class Entropy(Term):
    """Entropy bonus: subtracts `coef` times the mean entropy of the trained steps (nats, over the whole vocabulary).

    Refused for denoising: a Gaussian of given width has an entropy that no weight changes.
    """

    @property
    def reads_entropy(self) -> bool:
        return True

    def parts(self, out: StepOutput, batch: UnitBatch, others: Replays, divergence: Divergence) -> dict[str, Part]:
        if out.entropy is None:
            raise RunError("the entropy term needs the entropy of each step, and this policy's replay gives none")
        return {self.name: Part(out.entropy, -1.0)}


def most_uncertain(mask: Tensor, entropy: Tensor, fraction: float, pool: Tensor | None = None) -> Tensor:
    """Steps of `mask (N, S)` bool whose `entropy (N, S)` is in the top `fraction`, `(N, S)` bool.

    The bound is the `1 - fraction` quantile (linear) of `pool`, any number of entropies, or without one of the sample's
    own masked steps; what equals the bound is kept. Source: Wang et al. 2025 (arXiv 2506.01939), fraction 0.2.
    """
    kept = torch.zeros_like(mask)
    for row in range(len(mask)):
        own = entropy[row][mask[row]]
        values = own if pool is None else pool
        if own.numel():
            bound = float(np.quantile(values.double().cpu().numpy(), 1 - fraction))
            kept[row] = mask[row] & (entropy[row].double() >= bound - 1e-9)
    return kept


class EntropySteps(StepSelector):
    """Only the `fraction` of most uncertain steps is trained: of the whole `batch` (all ranks), or of each `sample`."""

    fraction: float = Field(default=0.2, gt=0, le=1)
    among: Literal["batch", "sample"] = "batch"

    @property
    def measures(self) -> tuple[str, ...]:
        return ("entropy",)

    def after_measuring(self, mask: Tensor, entropy: Tensor, pool: Tensor) -> Tensor:
        return most_uncertain(mask, entropy, self.fraction, pool if self.among == "batch" else None)
