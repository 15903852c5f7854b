"""SAPO: a soft gate instead of a clip."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from mmrl.objective.surrogate import Diagnostics, Surrogate, log_ratio


def soft_gate(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, tau_positive: float, tau_negative: float
) -> tuple[Tensor, Diagnostics]:
    """`-A (4 / tau) sigmoid(tau (r - 1))`, tau by the sign of A (0 counts as negative). All `(n, s)`.

    At r = 1 the gradient is that of PPO; it fades on both sides, the faster the larger tau. Source: arXiv 2511.20347.
    """
    d = log_ratio(log_prob, old_log_prob)
    tau = torch.full_like(advantage, tau_negative).masked_fill(advantage > 0, tau_positive)
    loss = -advantage * (4 / tau) * torch.sigmoid(tau * torch.expm1(d))
    never = torch.zeros_like(advantage, dtype=torch.bool)
    return loss, Diagnostics(d.detach(), never, never, never)


class Sapo(Surrogate):
    """SAPO: the ratio through a sigmoid; `tau_negative` above `tau_positive` trusts bad samples less."""

    tau_positive: float = Field(default=1.0, gt=0)
    tau_negative: float = Field(default=1.05, gt=0)

    def __call__(
        self, log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, mask: Tensor
    ) -> tuple[Tensor, Diagnostics]:
        return soft_gate(log_prob, old_log_prob, advantage, self.tau_positive, self.tau_negative)
