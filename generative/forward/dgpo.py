"""DGPO: the preference of a whole group, good against bad samples, as one logistic loss."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mmrl.generative.forward.base import OldSurrogate
from mmrl.generative.forward.errors import group_mean
from mmrl.objective.batch import UnitBatch
from mmrl.objective.surrogate import Diagnostics, log_ratio
from mmrl.objective.terms import Replays
from mmrl.rollout import StepOutput


def dgpo(error: Tensor, older: Tensor, advantage: Tensor, group: Tensor, beta: float) -> Tensor:
    """`sg(sigmoid(S_g)) A_i e_i` `(n,)` with S_g = mean over the group of A_i beta (sg(e_i) - e_old,i); all tensors `(n,)`.

    Its gradient is that of -log sigmoid(-S_g) over beta. Source: DGPO as in Flow-Factory, `trainers/dgpo.py`.
    """
    pull = group_mean(advantage * beta * (error - older).detach(), group)
    return torch.sigmoid(pull) * advantage * error


class Dgpo(OldSurrogate):
    """DGPO: complete groups at one noise level with one noise, compared with the reference or a slow copy."""

    whole_groups: ClassVar[bool] = True

    beta: float = Field(default=100.0, gt=0)
    """10 to 100 with the reference, 2000 and more with a slow copy."""
    clip: float | None = Field(default=None, gt=0)
    """A sample whose error has moved away from that before the updates by a ratio beyond 1 +- clip has no gradient."""

    @property
    def reads_old(self) -> bool:
        return self.clip is not None

    def of_chunk(
        self, out: StepOutput, old_log_prob: Tensor, batch: UnitBatch, others: Replays
    ) -> tuple[Tensor, Diagnostics | None]:
        error, older = -out.log_prob[:, 0], -others["original", self.old].log_prob[:, 0]
        advantage, seen = batch.advantage[:, 0], None
        if self.clip is not None:
            d = log_ratio(out.log_prob.detach(), old_log_prob)
            below = (batch.advantage <= 0) & (d.exp() < 1 - self.clip)
            above = (batch.advantage > 0) & (d.exp() > 1 + self.clip)
            seen = Diagnostics(d, below, above, torch.zeros_like(below))
            error = torch.where((below | above)[:, 0], error.detach(), error)
        return dgpo(error, older, advantage, out.dist.group, self.beta)[:, None], seen
