"""DiffusionNFT: good samples pull the velocity, bad ones pull its mirror image on the other side of the old policy."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmrl.generative.forward.base import OldSurrogate
from mmrl.generative.forward.renoise import Noised
from mmrl.generative.transition import expand, rows_mean
from mmrl.objective.batch import UnitBatch
from mmrl.objective.surrogate import Diagnostics
from mmrl.objective.terms import Replays
from mmrl.policy import ModelName
from mmrl.rollout import StepOutput

FLOOR = 1e-5


def nft(new: Noised, old: Tensor, advantage: Tensor, beta: float, largest: float) -> Tensor:
    """`(n,)` float64 with gradient; `old (n, ...)` are the old policy's velocities, `advantage (n,)`, c = `largest`.

    r = clip(A / c, -1, 1) / 2 + 1/2; v+ = b v + (1 - b) v_old; v- = (1 + b) v_old - b v;
    q(y) = mean (x_t - t y - x0)^2 / sg(max(mean |x_t - t y - x0|, 1e-5)); L = c (r q(v+) + (1 - r) q(v-)) / b.
    Source: NVlabs/DiffusionNFT, `scripts/train_nft_sd3.py`.
    """
    v, old = new.output, old.detach()
    r = (advantage.double() / largest).clamp(-1, 1) / 2 + 0.5
    t = expand(new.level, v)

    def q(y: Tensor) -> Tensor:
        off = new.x - t * y - new.clean
        return rows_mean(off**2).double() / rows_mean(off.detach().double().abs()).clamp_min(FLOOR)

    plus, minus = beta * v + (1 - beta) * old, (1 + beta) * old - beta * v
    return largest * (r * q(plus) + (1 - r) * q(minus)) / beta


class Nft(OldSurrogate):
    """DiffusionNFT. The old policy, a slow copy, draws the samples; no guidance, and an ODE sampler will do."""

    drawn_by: ClassVar[ModelName] = "ema"

    old: Literal["ema"] = "ema"
    levels: Literal["schedule", "uniform", "logit_normal"] = "schedule"
    beta: float = Field(default=1.0, gt=0)
    """How far the two velocities lie from the old one (0.1 for OCR and several rewards)."""
    largest: float = Field(default=5.0, gt=0)
    """Advantages are clipped to plus and minus this; it multiplies the loss."""

    def of_chunk(
        self, out: StepOutput, old_log_prob: Tensor, batch: UnitBatch, others: Replays
    ) -> tuple[Tensor, Diagnostics | None]:
        loss = nft(out.dist, self.older(others).output, batch.advantage[:, 0], self.beta, self.largest)
        return loss[:, None].to(torch.float32), None
