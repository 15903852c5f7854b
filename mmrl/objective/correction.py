"""Correction for an inference engine whose log-probs are not those of the trainer (truncated importance sampling).

Factors multiply the policy loss only and carry no gradient. A rejected step keeps its place in the counts that the loss
is divided by. Shapes: N samples, S steps; `old` are the trainer's log-probs of the drawn steps, `engine` those reported.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from mmrl.components import Component
from mmrl.objective.sequence import row_mean

Level = Literal["token", "sequence", "geometric"]
Reduction = Literal["token", "sum", "mean", "max"]
SAFE = 20.0


def importance(old: Tensor, engine: Tensor, mask: Tensor, level: Level, cap: float) -> Tensor:
    """`min(exp(old - engine), cap)` at the steps of `mask (N, S)`, 0 elsewhere; `(N, S)` float32.

    `token`: of every step for itself; `sequence`: of the product over a sample's steps; `geometric`: of their geometric
    mean. The logarithm is clamped to +-20.
    """
    d = (old - engine).masked_fill(~mask, 0.0)
    if level == "sequence":
        d = d.sum(1, keepdim=True).expand_as(d)
    elif level == "geometric":
        d = row_mean(d, mask).expand_as(d)
    return d.clamp(-SAFE, SAFE).exp().clamp(max=cap).masked_fill(~mask, 0.0).to(torch.float32)


def accepted(
    old: Tensor,
    engine: Tensor,
    mask: Tensor,
    statistic: Literal["k1", "k2", "k3"],
    over: Reduction,
    low: float | None,
    high: float,
) -> Tensor:
    """Steps of `mask (N, S)` that are not rejected, `(N, S)` bool.

    With d = old - engine: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - d - 1. `over` says what is judged: the token, or a
    whole sample by the sum, mean or maximum over its steps. k1 must lie in `[log low, log high]`
    (ratios engine to trainer, as in verl), k2 and k3 must not exceed `high`.
    """
    d = (old - engine).clamp(-SAFE, SAFE).masked_fill(~mask, 0.0)
    value = -d if statistic == "k1" else d.square() / 2 if statistic == "k2" else torch.expm1(d) - d
    if over == "sum":
        value = value.sum(1, keepdim=True)
    elif over == "mean":
        value = row_mean(value, mask)
    elif over == "max":
        value = value.masked_fill(~mask, -math.inf).amax(1, keepdim=True)
    if statistic == "k1":
        return mask & (value >= (-math.inf if low is None else math.log(low))) & (value <= math.log(high))
    return mask & (value <= high)


class Rejection(BaseModel):
    """A bound on how far engine and trainer may be apart; see `accepted`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    statistic: Literal["k1", "k2", "k3"] = "k1"
    over: Reduction = "token"
    low: float | None = Field(default=None, gt=0)
    high: float = Field(gt=0)

    @model_validator(mode="after")
    def _bounds(self) -> Rejection:
        if self.statistic != "k1" and self.low is not None:
            raise ValueError(f"low is read by statistic k1 only, {self.statistic} has an upper bound alone")
        if self.statistic == "k1" and (self.low is None or not self.low < 1 < self.high):
            raise ValueError(f"k1 compares a ratio: it needs low < 1 < high, got low {self.low} and high {self.high}")
        return self


class Correction(Component):
    """Base of the kind `correction`. Refused where the rollout has no log-probs of an engine."""

    normalize: bool = False
    """Divide the factors by their mean over the trained samples (all ranks)."""

    def factor(self, old: Tensor, engine: Tensor, mask: Tensor) -> Tensor:
        """Factor of each step's policy loss `(N, S)` float32, not normalised, 0 outside `mask (N, S)` bool."""
        raise NotImplementedError

    def totals(self, factor: Tensor, mask: Tensor) -> tuple[float, float]:
        """Sum and number of what `normalize` makes 1 on average; to be added over ranks."""
        return float(factor.sum(dtype=torch.float64)), float(mask.sum())

    def keep(self, old: Tensor, engine: Tensor, mask: Tensor) -> Tensor:
        """Steps `(N, S)` bool of `mask` whose policy loss counts at all."""
        return mask


class Tis(Correction):
    """Truncated importance sampling: factors `exp(old - engine)` up to `cap`, and perhaps rejections.

    IcePop: `reject: [{statistic: k1, over: token, low: 0.5, high: 2}]`; masking whole samples: `over: sum` or `mean`.
    """

    level: Level = "token"
    cap: float = Field(default=2.0, gt=0)
    reject: tuple[Rejection, ...] = ()

    def factor(self, old: Tensor, engine: Tensor, mask: Tensor) -> Tensor:
        return importance(old, engine, mask, self.level, self.cap)

    def totals(self, factor: Tensor, mask: Tensor) -> tuple[float, float]:
        if self.level == "token":
            return super().totals(factor, mask)
        return float(row_mean(factor, mask).sum(dtype=torch.float64)), float(mask.any(1).sum())

    def keep(self, old: Tensor, engine: Tensor, mask: Tensor) -> Tensor:
        for one in self.reject:
            mask = mask & accepted(old, engine, mask, one.statistic, one.over, one.low, one.high)
        return mask
