"""ASPO: for good samples the importance ratio is turned over, so that unlikely steps learn the most."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from mmrl.objective.archer import ByEntropy
from mmrl.objective.batch import UnitBatch
from mmrl.objective.surrogate import Diagnostics, log_ratio


def turned_over(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, width: Tensor, cap: float
) -> tuple[Tensor, Diagnostics]:
    """A loss `(n, s)` whose gradient is `-A c grad log p`, all tensors `(n, s)`, `width` the clip range of each step.

    For A < 0: c = 0 where r < 1 - width, else min(r, cap). For A > 0: c = 0 where r > 1 + width, else min(1 / r, cap).
    Where `cap` binds the loss is `-A cap log p`, else its value is -A times the clipped ratio (or over it). Source: ASPO
    (arXiv 2510.06062; wizard-III/Archer2.0, `compute_policy_loss_archer`).
    """
    d = log_ratio(log_prob, old_log_prob)
    ratio = d.detach().exp()
    below, above = (advantage < 0) & (ratio < 1 - width), (advantage > 0) & (ratio > 1 + width)
    c = torch.where(advantage < 0, ratio.maximum(1 - width), 1 / ratio.minimum(1 + width))
    capped = (c > cap) & (advantage != 0)
    one = torch.where(below | above, 1.0, (d - d.detach()).exp())
    loss = -advantage * torch.where(capped, cap * log_prob, c * one)
    return loss, Diagnostics(d.detach(), below, above, capped)


class Aspo(ByEntropy):
    """ASPO, with the clip ranges of Archer. `clip_dual` in the log are the steps whose weight is capped."""

    cap: float = Field(default=3.0, gt=1)
    """The largest weight of a step's gradient."""

    def of_batch(self, log_prob: Tensor, old_log_prob: Tensor, batch: UnitBatch) -> tuple[Tensor, Diagnostics]:
        return turned_over(log_prob, old_log_prob, batch.advantage, self.width(batch), self.cap)
