"""The seam of auxiliary terms: what is added to the policy loss, with a coefficient and perhaps extra replays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from pydantic import Field
from torch import Tensor

from mmrl.components import Component
from mmrl.objective.batch import UnitBatch
from mmrl.policy import ModelName
from mmrl.rollout import StepOutput

Need: TypeAlias = tuple[str, ModelName]
"""`(view, model)` of an extra replay."""

Replays: TypeAlias = Mapping[Need, StepOutput]
Divergence: TypeAlias = Callable[[StepOutput, StepOutput, str], Tensor]
"""`divergence(p, q, norm)` of the policy: exact KL(p || q) per step `(n, s)`."""


@dataclass(frozen=True)
class Part:
    """One summand of a term: `factor * sum(value * W)`, `value (n, s)`, W the weights of the steps that `view` can see:
    samples that look the same through it count neither in the sum nor in what it is divided by."""

    value: Tensor
    factor: float = 1.0
    view: str = "original"


class Term(Component):
    """Base of the kind `term`: adds `coef * sum(value * W)` to the loss, W the weights of the aggregation.

    A coefficient of 0 switches the term off: no replay, no value, the same gradient as without it.
    """

    coef: float = Field(ge=0)

    @property
    def name(self) -> str:
        """Name of the value in the log."""
        return type(self).__name__.lower()

    @property
    def replays(self) -> tuple[Need, ...]:
        """What `value` reads from `others`."""
        return ()

    @property
    def needs(self) -> tuple[Need, ...]:
        """Extra replays, none when the coefficient is 0."""
        return self.replays if self.coef else ()

    @property
    def sees(self) -> tuple[str, ...]:
        """The views of its summands (see `Part.view`); where no trained sample can be seen through one, it adds nothing."""
        return tuple(dict.fromkeys(view for view, _ in self.replays)) or ("original",)

    @property
    def measures(self) -> tuple[str, ...]:
        """What of each step must be measured before the loss (`UnitBatch.measured`)."""
        return ()

    @property
    def gradients(self) -> tuple[Need, ...]:
        """Those of `needs` that are replayed with gradient."""
        return ()

    @property
    def reads_entropy(self) -> bool:
        """The steps must have an entropy that depends on the weights."""
        return False

    def value(self, out: StepOutput, batch: UnitBatch, others: Replays, divergence: Divergence) -> Tensor:
        """Value `(n, s)` with gradient, before the coefficient. Log-probs are 0 outside `batch.mask`."""
        raise NotImplementedError

    def parts(self, out: StepOutput, batch: UnitBatch, others: Replays, divergence: Divergence) -> dict[str, Part]:
        """The summands by their name in the log; the term adds `coef` times their sum."""
        return {self.name: Part(self.value(out, batch, others, divergence))}
