"""CISPO: the score-function gradient under a capped importance weight."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from mmrl.objective.surrogate import Diagnostics, Surrogate, log_ratio


def capped_score(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, ratio_cap: float
) -> tuple[Tensor, Diagnostics]:
    """`-sg[min(r, ratio_cap)] A log p`: no step loses its gradient. All `(n, s)`.

    `ratio_cap` is the largest weight itself, not its distance from 1. Source: MiniMax-M1 (arXiv 2506.13585). The value
    is no policy loss: at equal weights it is `-A log p`. As `high` are reported the steps whose weight is capped.
    """
    d = log_ratio(log_prob, old_log_prob).detach()
    capped = d.exp() > ratio_cap
    never = torch.zeros_like(capped)
    return -d.exp().clamp(max=ratio_cap) * advantage * log_prob, Diagnostics(d, never, capped, never)


class Cispo(Surrogate):
    """CISPO: REINFORCE weighted by the ratio, at most `ratio_cap`."""

    ratio_cap: float = Field(default=5.0, ge=1)
    """The largest weight, as an absolute number (1.28 where others write 0.28)."""

    def __call__(
        self, log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, mask: Tensor
    ) -> tuple[Tensor, Diagnostics]:
        return capped_score(log_prob, old_log_prob, advantage, self.ratio_cap)
