"""Policy losses per step, to be minimised. Ratios are formed in log space, the log-ratio clamped to +-20."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mmrl.advantage.types import Following
from mmrl.components import Component
from mmrl.objective.aggregate import Mode
from mmrl.objective.batch import UnitBatch
from mmrl.objective.forward import Forward
from mmrl.objective.terms import Need, Replays
from mmrl.policy import ModelName
from mmrl.rollout import StepOutput

MAX_LOG_RATIO = 20.0


@dataclass(frozen=True)
class Diagnostics:
    """Detached `(n, s)`: the log-ratio to the behaviour policy, and the steps whose gradient is cut at the lower bound,
    the upper bound, or by the dual clip."""

    log_ratio: Tensor
    low: Tensor
    high: Tensor
    dual: Tensor


def log_ratio(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """`clamp(log p - log p_old, -20, 20)`, with gradient to `log_prob`."""
    return (log_prob - old_log_prob.detach()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def clipped(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    low: float | Tensor,
    high: float | Tensor,
    dual: float | None = None,
) -> tuple[Tensor, Diagnostics]:
    """`max(-A r, -A clip(r, 1 - low, 1 + high))`, and for A < 0 at most `-dual A`.

    All tensors `(n, s)`; `low` and `high` are numbers, or both of each step. Written by cases, so that a step on a bound has a defined gradient: only steps that are really
    cut lose it. Source: PPO; dual clip: Ye et al. 2020 (arXiv 1912.09729), c = 3 in verl.
    """
    d = log_ratio(log_prob, old_log_prob)
    ratio = d.exp()
    below, above = (advantage < 0) & (ratio < 1 - low), (advantage > 0) & (ratio > 1 + high)
    bounded = torch.clamp(ratio, min=1 - low, max=1 + high)  # type: ignore[arg-type]  # both numbers or both tensors
    loss = -advantage * torch.where(below | above, bounded, ratio)
    cut = torch.zeros_like(below)
    if dual is not None:
        cut = (advantage < 0) & (ratio > dual)
        loss = torch.where(cut, -dual * advantage, loss)
    return loss, Diagnostics(d.detach(), below, above, cut)


def reinforce(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor) -> tuple[Tensor, Diagnostics]:
    """`-A log p`, the score-function gradient without a ratio; the log-ratio is only reported. All tensors `(n, s)`."""
    never = torch.zeros_like(advantage, dtype=torch.bool)
    return -advantage * log_prob, Diagnostics(log_ratio(log_prob, old_log_prob).detach(), never, never, never)


class Surrogate(Component):
    """Base of the kind `surrogate`."""

    needs_log_prob: ClassVar[bool] = True
    """Refused with a sampler that has no density (a pure ODE)."""
    whole_samples: ClassVar[bool] = False
    """A chunk must hold all steps of its samples (refused for denoising, which replays single steps)."""
    reads_probability: ClassVar[bool] = False
    """A step must have a probability, not a density (refused for denoising)."""
    homogeneous: ClassVar[bool] = False
    """The loss of `c A` is `c` times that of `A` for every c >= 0."""
    aggregates: ClassVar[tuple[Mode, ...] | None] = None
    """The aggregations it has a meaning under, None for all of them."""
    reads_transition: ClassVar[bool] = False
    """It reads the Gaussian of each denoising step and the mean that it was drawn with (`Rollout.payload` keeps it then)."""
    compares_pairs: ClassVar[bool] = False
    """It reads two samples of every group, so the selection must leave two."""
    drawn_by: ClassVar[ModelName] = "policy"
    """Whose samples it learns from: those of the policy, or of its slow copy ("ema")."""

    @property
    def clip_range(self) -> float | None:
        """How far from 1 the ratio of a step may be on the narrower side, for whichever step that is the least, before its gradient
        is cut; None where that is not said of the ratio of a step."""
        return None

    @property
    def reads_old(self) -> bool:
        """It reads the log-probs of the policy before the updates; where not, none are made for a `forward` view."""
        return True

    @property
    def forward(self) -> Forward | None:
        """How it sees finished samples; None: by the steps they were drawn with."""
        return None

    @property
    def needs(self) -> tuple[Need, ...]:
        """Extra replays `(view, model)` that `of_chunk` reads, without gradient."""
        return ()

    @property
    def follows(self) -> Following | None:
        """How the slow copy of the weights moves that it reads or that draws for it; None when there need be none."""
        return None

    @property
    def measures(self) -> tuple[str, ...]:
        """What of each step must be measured before the loss (`UnitBatch.measured`)."""
        return ()

    def of_chunk(
        self, out: StepOutput, old_log_prob: Tensor, batch: UnitBatch, others: Replays
    ) -> tuple[Tensor, Diagnostics | None]:
        """The loss `(n, s)` of a chunk; a surrogate that reads more than log-probs has its own. No diagnostics: no ratio."""
        return self.of_batch(out.log_prob, old_log_prob, batch)

    def of_batch(self, log_prob: Tensor, old_log_prob: Tensor, batch: UnitBatch) -> tuple[Tensor, Diagnostics]:
        """The loss of a chunk; a surrogate that reads more of it than the advantage has its own."""
        return self(log_prob, old_log_prob, batch.advantage, batch.mask)

    def __call__(
        self, log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, mask: Tensor
    ) -> tuple[Tensor, Diagnostics]:
        """Loss `(n, s)` with gradient, and diagnostics. Log-probs are 0 outside `mask`; what is returned there is dropped."""
        raise NotImplementedError


class Clip(Surrogate):
    """PPO and GRPO: the ratio is clipped to `[1 - low, 1 + high]`. DAPO raises `high` to 0.28."""

    homogeneous: ClassVar[bool] = True

    low: float = Field(default=0.2, gt=0, le=1)
    high: float = Field(default=0.2, gt=0)
    dual: float | None = Field(default=None, gt=1)
    """For A < 0 the loss is at most `-dual A` (3 in verl); off by default."""

    @model_validator(mode="after")
    def _dual_beyond_high(self) -> Clip:
        if self.dual is not None and self.dual <= 1 + self.high:
            raise ValueError(f"dual {self.dual} must be above 1 + high = {1 + self.high}")
        return self

    @property
    def clip_range(self) -> float:
        return min(self.low, self.high)

    def __call__(
        self, log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, mask: Tensor
    ) -> tuple[Tensor, Diagnostics]:
        return clipped(log_prob, old_log_prob, advantage, self.low, self.high, self.dual)


class Reinforce(Surrogate):
    """REINFORCE: `-A log p`, without ratio and clipping."""

    def __call__(
        self, log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, mask: Tensor
    ) -> tuple[Tensor, Diagnostics]:
        return reinforce(log_prob, old_log_prob, advantage)
