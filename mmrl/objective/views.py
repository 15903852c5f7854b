"""Terms that compare what the policy says with what it says when it sees less (PAPO, DVRP).

Samples whose prompt has nothing to see count neither in these terms nor in what they are divided by.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field
from torch import Tensor

from mmrl.objective.batch import UnitBatch
from mmrl.objective.kl import k3
from mmrl.objective.terms import Divergence, Need, Part, Replays, Term
from mmrl.rollout import StepOutput

Form = Literal["k3", "full_kl"]


def visual_kl(out: StepOutput, other: StepOutput, form: Form, cap: float | None, divergence: Divergence) -> Tensor:
    """KL of the policy with the original and with another view, per step `(n, s)`, at most `cap`.

    `k3` estimates it from the drawn step, `exp(d) - d - 1` with d = log p(other) - log p(original): its gradient is that
    of KL(other || original). `full_kl` is KL(original || other) over everything that could have been drawn. Above the
    cap there is no gradient.
    """
    value = k3(out.log_prob, other.log_prob) if form == "k3" else divergence(out, other, "s2")
    return value if cap is None else value.clamp(max=cap)


class Papo(Term):
    """PAPO: `-coef * KL(original || masked) + entropy * (Hm + Ho)`, H the mean of `-log p` of the drawn steps.

    The perception KL is to grow, both entropies are to shrink (the double entropy loss that keeps the KL from being
    gamed). With `aug_grad: none` the masked replay is a constant and Hm has a value but no gradient; `recompute` lets the
    gradient through it. Ho alone has no expected gradient while the ratio is 1. Published: coef 0.02 with GRPO, 0.01 with
    DAPO; entropy 0 for 3B, 0.05 (GRPO) and 0.03 (DAPO) for 7B. Source: arXiv 2507.06448; the masked replay is made with
    the weights of each update, the original implementation makes it once per rollout.
    """

    entropy: float = Field(default=0.0, ge=0)
    """Coefficient of the double entropy loss; it is off when `coef` is 0."""
    clip: float | None = Field(default=None, gt=0)
    """The perception KL of one step counts up to this."""
    anneal: bool = False
    """Both coefficients shrink linearly to 0 over the stage."""
    divergence: Form = "k3"
    aug_grad: Literal["none", "recompute"] = "none"
    view: str = "masked"

    @property
    def replays(self) -> tuple[Need, ...]:
        return ((self.view, "policy"),)

    @property
    def gradients(self) -> tuple[Need, ...]:
        return self.needs if self.aug_grad == "recompute" else ()

    @property
    def reads_entropy(self) -> bool:
        return self.entropy > 0

    def parts(self, out: StepOutput, batch: UnitBatch, others: Replays, divergence: Divergence) -> dict[str, Part]:
        other = others[self.view, "policy"]
        if self.aug_grad == "none":  # another term may have asked for the gradient
            other = replace(other, log_prob=other.log_prob.detach())
        left = 1 - batch.progress if self.anneal else 1.0
        found = {"papo_kl": Part(visual_kl(out, other, self.divergence, self.clip, divergence), -left, self.view)}
        if self.entropy:
            weight = left * self.entropy / self.coef
            found["papo_entropy"] = Part(-out.log_prob, weight, self.view)
            found["papo_entropy_masked"] = Part(-other.log_prob, weight, self.view)
        return found


class Dvrp(Term):
    """DVRP: away from what a masked picture says, close to what a perturbed picture says:
    `coef * (-masked * KL(original || masked) + perturbed * KL(original || perturbed) + entropy * (Ho + Hm + Hp))`.

    The subtracted KL has no upper bound of its own, so one step counts up to `cap`. The other views are replayed without
    gradient. Reconstructed from the method's abstract; the double entropy loss is that of PAPO.
    """

    coef: float = Field(default=1.0, ge=0)
    masked: float = Field(default=0.01, ge=0)
    perturbed: float = Field(default=0.01, ge=0)
    entropy: float = Field(default=0.0, ge=0)
    cap: float = Field(default=1.0, gt=0)
    divergence: Form = "k3"
    masked_view: str = "masked"
    perturbed_view: str = "perturbed"

    @property
    def replays(self) -> tuple[Need, ...]:
        return ((self.masked_view, "policy"), (self.perturbed_view, "policy"))

    @property
    def sees(self) -> tuple[str, ...]:
        pairs = ((self.masked_view, self.masked), (self.perturbed_view, self.perturbed))
        return tuple(view for view, coef in pairs if coef or self.entropy)

    @property
    def reads_entropy(self) -> bool:
        return self.entropy > 0

    def parts(self, out: StepOutput, batch: UnitBatch, others: Replays, divergence: Divergence) -> dict[str, Part]:
        masked, perturbed = (replace(others[need], log_prob=others[need].log_prob.detach()) for need in self.replays)
        far = visual_kl(out, masked, self.divergence, self.cap, divergence)
        near = visual_kl(out, perturbed, self.divergence, None, divergence)
        found = {
            "dvrp_masked": Part(far, -self.masked, self.masked_view),
            "dvrp_perturbed": Part(near, self.perturbed, self.perturbed_view),
        }
        if self.entropy:
            found["dvrp_entropy"] = Part(-out.log_prob, self.entropy, self.masked_view)
            found["dvrp_entropy_masked"] = Part(-masked.log_prob, self.entropy, self.masked_view)
            found["dvrp_entropy_perturbed"] = Part(-perturbed.log_prob, self.entropy, self.perturbed_view)
        return found
