"""Scores on another scale: fixed, by their group, by the batch, or by all that was seen so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PrivateAttr, model_validator

from mmrl.advantage.stats import batch_std, centred, group_stats
from mmrl.advantage.types import Floats
from mmrl.compose.transform import Seen, Transform


class Affine(Transform):
    """`(x - mean) / std` with numbers that are known, as those a reward model was calibrated with."""

    mean: float = Field(default=0.0, allow_inf_nan=False)
    std: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    def __call__(self, values: Floats, seen: Seen) -> Floats:
        return (values - self.mean) / self.std


class _Bounds(Transform):
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)

    @model_validator(mode="after")
    def _in_order(self) -> _Bounds:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        return self

    def __call__(self, values: Floats, seen: Seen) -> Floats:
        return np.clip(values, self.low, self.high)


class MinMax(_Bounds):
    """`(x - low) / (high - low)`, kept inside 0 and 1."""

    def __call__(self, values: Floats, seen: Seen) -> Floats:
        return (np.clip(values, self.low, self.high) - self.low) / (self.high - self.low)


class Clip(_Bounds):
    """Scores below `low` are `low`, scores above `high` are `high`."""


class Standardise(Transform):
    """`(x - mean) / (std + eps)` over the `group` or the whole `batch`; 0 where scores do not differ."""

    over: Literal["group", "batch"] = "group"
    ddof: Literal[0, 1] = 1
    eps: float = Field(default=1e-4, gt=0)

    def __call__(self, values: Floats, seen: Seen) -> Floats:
        group = seen.group if self.over == "group" else np.zeros_like(seen.group)
        stats = group_stats(values, group, self.ddof)
        std = stats.std[stats.index] if self.over == "group" else batch_std(values, self.ddof)
        return np.where(np.isnan(values), np.nan, centred(values, stats) / (std + self.eps))


class Rank(Transform):
    """The rank inside the group, from 0 for the lowest score to 1 for the highest; equal scores share their mean rank, and a score
    that is alone has 0.5."""

    def __call__(self, values: Floats, seen: Seen) -> Floats:
        found = np.full(len(values), np.nan)
        for key in np.unique(seen.group):
            rows = np.flatnonzero((seen.group == key) & ~np.isnan(values))
            own = values[rows]
            below = (own[None, :] < own[:, None]).sum(1) + ((own[None, :] == own[:, None]).sum(1) - 1) / 2
            found[rows] = below / (len(rows) - 1) if len(rows) > 1 else 0.5
        return found


class Running(Transform):
    """`(x - mean) / (std + eps)` over all scores of the stage so far, this step's included; earlier steps count `decay` per step."""

    remembers: ClassVar[bool] = True
    decay: float = Field(default=1.0, gt=0, le=1)
    eps: float = Field(default=1e-4, gt=0)

    _sums: tuple[float, float, float] = PrivateAttr(default=(0.0, 0.0, 0.0))
    """Number, mean and sum of squared deviations of what was remembered."""

    def __call__(self, values: Floats, seen: Seen) -> Floats:
        count, mean, squares = self._with(values)
        std = math.sqrt(squares / count) if count else 0.0
        return (values - mean) / (std + self.eps)

    def remember(self, values: Floats, seen: Seen) -> None:
        self._sums = self._with(values)

    def _with(self, values: Floats) -> tuple[float, float, float]:
        """The sums with a step's scores (Chan et al. 1983, for parts of a batch)."""
        own = values[~np.isnan(values)]
        count, mean, squares = self._sums[0] * self.decay, self._sums[1], self._sums[2] * self.decay
        if not len(own):
            return self._sums
        number, centre = float(len(own)), float(own.mean())
        total, gap = count + number, centre - mean
        spread = squares + float(((own - centre) ** 2).sum()) + gap * gap * count * number / total
        return total, mean + gap * number / total, spread

    def metrics(self, values: Floats, seen: Seen) -> dict[str, float]:
        count, mean, squares = self._sums
        return {"running_mean": mean, "running_std": math.sqrt(squares / count)} if count else {}

    def state(self) -> dict[str, Any]:
        return {"sums": list(self._sums)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        count, mean, squares = state["sums"]
        self._sums = (float(count), float(mean), float(squares))
