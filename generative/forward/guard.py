"""GRPO-Guard and Flow-DPPO: ratio losses that also read how far the mean of a denoising step has moved."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from mmrl.generative.transition import Transition, rows_mean
from mmrl.objective.batch import UnitBatch
from mmrl.objective.surrogate import Diagnostics, Surrogate, clipped, log_ratio
from mmrl.objective.terms import Replays
from mmrl.rollout import StepOutput


def moved(mean: Tensor, drawn_mean: Tensor, std: Tensor) -> Tensor:
    """`mean_d (mu - mu_old)^2 / (2 s^2)` `(n,)`, the KL of two steps of std s `(n, 1, ...)`; with gradient through `mean (n, ...)`."""
    return rows_mean((mean - drawn_mean.detach()) ** 2) / (2 * std.flatten() ** 2)


def guarded(
    log_prob: Tensor, old_log_prob: Tensor, drift: Tensor, std: Tensor, advantage: Tensor, low: float, high: float
) -> tuple[Tensor, Diagnostics]:
    """Clipped loss of the ratio `exp(s (l - l_old + drift))`, all tensors `(n, s)`; the drift of the means takes away the
    negative mean of the log-ratio, the std s what is left of its scale. Source: GRPO-Guard (arXiv 2510.22319)."""
    scaled = std * (log_prob - old_log_prob.detach() + drift)
    return clipped(scaled, torch.zeros_like(scaled), advantage, low, high)


def trusted(
    log_prob: Tensor, old_log_prob: Tensor, drift: Tensor, advantage: Tensor, largest: float
) -> tuple[Tensor, Diagnostics]:
    """`-A r`, without a gradient where the step has moved by `largest` or more and is to move further: A > 0 and r > 1, or A < 0 and
    r < 1. All tensors `(n, s)`. Source: Flow-DPPO as in verl-omni."""
    d = log_ratio(log_prob, old_log_prob)
    far = drift.detach() >= largest
    below, above = far & (advantage < 0) & (d < 0), far & (advantage > 0) & (d > 0)
    loss = torch.where(below | above, 0.0, -advantage * d.exp())
    return loss, Diagnostics(d.detach(), below, above, torch.zeros_like(below))


def _drift(step: Transition) -> tuple[Tensor, Tensor]:
    """How far the means have moved and the std, `(n, 1)`; 0 and 1 for rows without a density, which are never trained."""
    assert step.drawn_mean is not None, "the rollout keeps the means where a surrogate reads transitions"
    std = torch.where(step.random.reshape(step.std.shape), step.std, 1.0)
    return moved(step.mean, step.drawn_mean, std)[:, None], std.reshape(-1, 1)


class Guard(Surrogate):
    """GRPO-Guard: the ratio is freed from the drift of the means and from the scale of the step."""

    reads_transition = True
    homogeneous = True

    low: float = Field(default=1e-4, gt=0, le=1)
    high: float = Field(default=1e-4, gt=0)
    per_width: bool = True
    """Divide the loss by the width D of the step (verl-omni, Pref-GRPO; Flow-Factory does not)."""

    def of_chunk(
        self, out: StepOutput, old_log_prob: Tensor, batch: UnitBatch, others: Replays
    ) -> tuple[Tensor, Diagnostics | None]:
        drift, std = _drift(out.dist)
        loss, seen = guarded(out.log_prob, old_log_prob, drift, std, batch.advantage, self.low, self.high)
        return (loss / out.dist.dt.reshape(-1, 1) if self.per_width else loss), seen


class FlowDppo(Surrogate):
    """Flow-DPPO: instead of clipping, steps whose mean has moved far are not moved further."""

    reads_transition = True
    homogeneous = True

    largest: float = Field(default=1e-5, gt=0)
    """KL of a step, of its present mean to the one it was drawn with, from which on it is not moved further."""

    def of_chunk(
        self, out: StepOutput, old_log_prob: Tensor, batch: UnitBatch, others: Replays
    ) -> tuple[Tensor, Diagnostics | None]:
        drift, _ = _drift(out.dist)
        return trusted(out.log_prob, old_log_prob, drift, batch.advantage, self.largest)
