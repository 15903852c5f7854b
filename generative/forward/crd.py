"""CRD: rewards inside a group, centred, are matched by what the policy implies about them."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from mmrl.generative.forward.base import OldSurrogate
from mmrl.generative.forward.errors import group_mean
from mmrl.generative.forward.renoise import Noised
from mmrl.generative.transition import rows_mean
from mmrl.objective.batch import UnitBatch
from mmrl.objective.forward import Forward
from mmrl.objective.surrogate import Diagnostics
from mmrl.objective.terms import Replays
from mmrl.rollout import StepOutput

FLOOR = 1e-5
Loss = Literal["square", "cross_entropy"]


def implied_reward(new: Noised, old: Tensor, adaptive: bool) -> Tensor:
    """`-(||v - u||^2 / w - ||v_old - u||^2 / w_old)` `(n,)` with gradient; `adaptive`: w = sg(max(mean |v - u|, 1e-5)), else 1."""

    def error(v: Tensor) -> Tensor:
        off = v - new.target
        square = rows_mean(off**2).double()
        return square / rows_mean(off.detach().double().abs()).clamp_min(FLOOR) if adaptive else square

    return error(old.detach()) - error(new.output)


def crd(implied: Tensor, advantage: Tensor, group: Tensor, beta: float, largest: float, loss: Loss) -> Tensor:
    """`(n,)` with gradient: a = clip(A / c, -1, 1) / 2 + 1/2 with c = `largest`, both centred on their group,
    `c / b (b (R - sg mean R) - (a - mean a))^2`, or c / b times the cross entropy of b (R - sg mean R) to sigmoid(a - mean a).

    Source: CRD as in Flow-Factory, `trainers/crd.py` (uniform weights), which centres on all samples of a micro-batch.
    """
    a = (advantage.double() / largest).clamp(-1, 1) / 2 + 0.5
    wanted = a - group_mean(a, group)
    said = beta * (implied - group_mean(implied.detach(), group))
    if loss == "square":
        return largest / beta * (said - wanted) ** 2
    return largest / beta * binary_cross_entropy_with_logits(said, torch.sigmoid(wanted), reduction="none")


class Crd(OldSurrogate):
    """CRD (centred reward distillation): complete groups at one noise level."""

    whole_groups: ClassVar[bool] = True

    old: Literal["reference", "ema"] = "ema"
    beta: float = Field(default=1.0, gt=0)
    largest: float = Field(default=5.0, gt=0)
    """Advantages are clipped to plus and minus this; it multiplies the loss."""
    loss: Loss = "square"
    adaptive: bool = False
    """Errors are divided by their mean absolute value."""
    reference_guidance: float | None = Field(default=None, ge=1)
    """Guidance of the reference in a KL term (4.5 in the original), by default that of the rollout."""

    @model_validator(mode="after")
    def _one_reference(self) -> Crd:
        if self.reference_guidance is not None and self.old == "reference":
            raise ValueError("reference_guidance would also guide the old policy, which is the reference; set old: ema")
        return self

    @property
    def forward(self) -> Forward:
        return self.view(reference_guidance=self.reference_guidance)

    def of_chunk(
        self, out: StepOutput, old_log_prob: Tensor, batch: UnitBatch, others: Replays
    ) -> tuple[Tensor, Diagnostics | None]:
        implied = implied_reward(out.dist, self.older(others).output, self.adaptive)
        loss = crd(implied, batch.advantage[:, 0], out.dist.group, self.beta, self.largest, self.loss)
        return loss[:, None].to(torch.float32), None
