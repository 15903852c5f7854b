"""Online Diffusion-DPO: the best sample of a group against the worst, at one noise level with one noise."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmrl.generative.forward.base import OldSurrogate
from mmrl.objective.batch import UnitBatch
from mmrl.objective.surrogate import Diagnostics
from mmrl.objective.terms import Replays
from mmrl.rollout import StepOutput


def diffusion_dpo(error: Tensor, older: Tensor, advantage: Tensor, group: Tensor, beta: float) -> Tensor:
    """`(n,)` with gradient: both rows of a pair have `-log sigmoid(-beta/2 ((e_w - e_w^ref) - (e_l - e_l^ref)))`, so that the
    mean over rows is that over pairs; w is the row of a group's largest advantage, l that of its smallest. A group of one row,
    or whose advantages do not differ, gives 0. All tensors `(n,)`.

    Source: Diffusion-DPO (arXiv 2311.12908); online form: flow_grpo, `scripts/train_sd3_dpo.py`.
    """
    off = error - older.detach()
    loss = torch.zeros_like(error)
    for key in torch.unique(group):
        rows = (group == key).nonzero()[:, 0]
        best, worst = rows[advantage[rows].argmax()], rows[advantage[rows].argmin()]
        if advantage[best] > advantage[worst]:
            pair = torch.stack([best, worst])
            loss = loss.index_add(0, pair, -logsigmoid(-beta / 2 * (off[best] - off[worst])).expand(2))
    return loss


class DiffusionDpo(OldSurrogate):
    """Online Diffusion-DPO. With `old: ema, decay: 0, rate: null, every: 40` the reference is the policy of every 40 steps ago."""

    whole_groups: ClassVar[bool] = True
    compares_pairs: ClassVar[bool] = True

    beta: float = Field(default=100.0, gt=0)

    def of_chunk(
        self, out: StepOutput, old_log_prob: Tensor, batch: UnitBatch, others: Replays
    ) -> tuple[Tensor, Diagnostics | None]:
        error, older = -out.log_prob[:, 0], -others["original", self.old].log_prob[:, 0]
        return diffusion_dpo(error, older, batch.advantage[:, 0], out.dist.group, self.beta)[:, None], None
