"""KL to the reference: sampled estimators for any policy, the exact form where the family knows it.

Estimators after J. Schulman, "Approximating KL divergence" (2020). Samples come from the policy p; q is the reference.
As a loss, the expected gradient of k1 is 0, that of k2 is the gradient of KL(p || q), and that of k3 is the gradient of
the forward direction KL(q || p). `k3+` has the value of k3 and the gradient of k2.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mmrl.objective.archer import uncertain
from mmrl.objective.batch import UnitBatch
from mmrl.objective.terms import Divergence, Need, Replays, Term
from mmrl.rollout import StepOutput

Estimator = Literal["k1", "abs", "k2", "k3", "k3+"]
REFERENCE: Need = ("original", "reference")


def k3(log_prob: Tensor, other: Tensor) -> Tensor:
    """`exp(d) - d - 1` with d = other - log_prob, per step, with gradient through both; d is clamped to +-20, the value
    to +-10 (as in verl)."""
    d = (other - log_prob).clamp(-20, 20)
    return (torch.expm1(d) - d).clamp(-10, 10)


def estimate(log_prob: Tensor, ref_log_prob: Tensor, estimator: Estimator) -> Tensor:
    """Estimate of KL(policy || reference) per step from the drawn action, same shape as `log_prob`, in nats.

    With d = log q - log p: k1 = -d, abs = |d|, k2 = d^2 / 2, k3 = exp(d) - d - 1 (d clamped to +-20, the value to +-10,
    as in verl). `ref_log_prob` gets no gradient.
    """
    d = ref_log_prob.detach() - log_prob
    if estimator == "k1":
        return -d
    if estimator == "abs":
        return d.abs()
    if estimator == "k2":
        return d.square() / 2
    if estimator == "k3":
        return k3(log_prob, ref_log_prob.detach())
    if estimator == "k3+":
        k2 = d.square() / 2
        return k3(log_prob, ref_log_prob).detach() + k2 - k2.detach()
    raise ValueError(f"unknown KL estimator '{estimator}'")


class KL(Term):
    """`coef * KL(policy || reference)`.

    `estimator: exact` asks the policy for the divergence in closed form (denoising) under `norm`: `s2` the true KL,
    `g2` the KL times the step width (Flow-GRPO's published coefficients), `v` the squared distance of velocities. With `on:
    certain` it is 0 at the uncertain steps of a sample, those above the `quantile` of its entropies (Archer).
    """

    estimator: Literal["exact", "k1", "abs", "k2", "k3", "k3+"] = "k3"
    norm: Literal["s2", "g2", "v"] = "s2"
    on: Literal["all", "certain"] = "all"
    quantile: float = Field(default=0.8, ge=0, le=1)
    """Read with `on: certain`."""

    @model_validator(mode="after")
    def _norm_is_read(self) -> KL:
        if self.estimator != "exact" and self.norm != "s2":
            raise ValueError(f"norm is read by estimator exact only, not by {self.estimator}")
        return self

    @property
    def replays(self) -> tuple[Need, ...]:
        return (REFERENCE,)

    @property
    def measures(self) -> tuple[str, ...]:
        return ("entropy",) if self.on == "certain" else ()

    def value(self, out: StepOutput, batch: UnitBatch, others: Replays, divergence: Divergence) -> Tensor:
        reference = others[REFERENCE]
        if self.estimator == "exact":
            value = divergence(out, reference, self.norm)
        else:
            value = estimate(out.log_prob, reference.log_prob, self.estimator)
        if self.on == "all":
            return value
        return value.masked_fill(uncertain(batch.measured["entropy"], batch.mask, self.quantile), 0.0)
