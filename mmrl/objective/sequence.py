"""Surrogates with one ratio per sample: the geometric mean of the ratios of its steps (GSPO, GMPO).

A chunk must hold whole samples. The loss of a sample stands at each of its steps, so that `seq_mean_token_mean` gives the
mean over samples; with `seq_mean_token_sum` every sample counts as often as it has steps (LUSPO). Another aggregation is
refused: `token_mean` would count a sample by its share of all steps of the update, which no method means.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmrl.objective.aggregate import Mode
from mmrl.objective.surrogate import Diagnostics, Surrogate, clipped, log_ratio

MAX_SEQUENCE_LOG_RATIO = 10.0
PER_SAMPLE: tuple[Mode, ...] = ("seq_mean_token_mean", "seq_mean_token_sum")


def row_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values (n, s)` over the trained steps `mask (n, s)` of each row, `(n, 1)`; 0 for a row without any."""
    return values.masked_fill(~mask, 0.0).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)


def sequence_log_ratio(log_prob: Tensor, old_log_prob: Tensor, mask: Tensor, level: str) -> Tensor:
    """The log of GSPO's ratio `s_i = exp(mean over steps of log p - log p_old)`, `(n, s)`, at most 10.

    `level` sequence: the same at all steps of a row, each carrying the gradient of all of them. token: the value of
    `s_i`, with the gradient of the step's own log-prob. Source: arXiv 2507.18071, eqs. 7 and 14.
    """
    mean = row_mean(log_ratio(log_prob, old_log_prob), mask)
    if level == "sequence":
        return mean.expand_as(log_prob).clamp(max=MAX_SEQUENCE_LOG_RATIO)
    return (mean.detach() + (log_prob - log_prob.detach())).clamp(max=MAX_SEQUENCE_LOG_RATIO)


def geometric(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, mask: Tensor, low: float, high: float
) -> tuple[Tensor, Diagnostics]:
    """GMPO: `-mean(A) exp(mean d)` per row, d the log-ratio, held back where it is beyond `[-low, high]` on the side to
    which the advantage pushes. All `(n, s)`. Source: arXiv 2507.20673; the bounds are of the logarithm."""
    d = log_ratio(log_prob, old_log_prob)
    below, above = (advantage < 0) & (d < -low), (advantage > 0) & (d > high)
    held = torch.where(below, -low, torch.where(above, high, d))
    held = torch.where(advantage == 0, 0.0, held)
    loss = -row_mean(advantage, mask) * row_mean(held, mask).exp()
    return loss.expand_as(d), Diagnostics(d.detach(), below, above, torch.zeros_like(below))


class Gspo(Surrogate):
    """GSPO: the ratio of a sample, clipped to `[1 - low, 1 + high]`. `level: token` has the same value, allows an
    advantage per step and, where there is one per sample, has the same gradient of the row's mean."""

    whole_samples: ClassVar[bool] = True
    aggregates: ClassVar[tuple[Mode, ...] | None] = PER_SAMPLE

    level: Literal["sequence", "token"] = "sequence"
    low: float = Field(default=3e-4, gt=0, le=1)
    high: float = Field(default=4e-4, gt=0)

    def __call__(
        self, log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, mask: Tensor
    ) -> tuple[Tensor, Diagnostics]:
        ratio = sequence_log_ratio(log_prob, old_log_prob, mask, self.level)
        loss, seen = clipped(ratio, torch.zeros_like(ratio), advantage, self.low, self.high)
        own = log_ratio(log_prob, old_log_prob).detach()
        return loss, Diagnostics(own, seen.low, seen.high, seen.dual)


class Gmpo(Surrogate):
    """GMPO: the geometric mean of the clipped ratios of a sample's steps; `low` and `high` bound the log-ratio."""

    whole_samples: ClassVar[bool] = True
    aggregates: ClassVar[tuple[Mode, ...] | None] = PER_SAMPLE

    low: float = Field(default=0.4, gt=0)
    high: float = Field(default=0.4, gt=0)

    def __call__(
        self, log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, mask: Tensor
    ) -> tuple[Tensor, Diagnostics]:
        return geometric(log_prob, old_log_prob, advantage, mask, self.low, self.high)
