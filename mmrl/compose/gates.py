"""Scores that depend on what another reward says of the sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, PrivateAttr, model_validator

from mmrl.advantage.types import Floats
from mmrl.compose.transform import Seen, Transform


class Gate(Transform):
    """The score where the reward `by` is at least `at_least`, else `floor`."""

    by: str
    at_least: float = Field(allow_inf_nan=False)
    floor: float = Field(allow_inf_nan=False)
    """What a sample gets that does not pass; without a default, as 0 would be the best score of many rewards."""

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.by,)

    def check_read(self, other: str, low: float | None, high: float | None) -> None:
        """Raises ValueError for a gate that never opens, or never shuts."""
        if high is not None and self.at_least > high:
            raise ValueError(f"no score of '{other}' is above {high:g}, so at_least {self.at_least:g} never opens it")
        if low is not None and self.at_least <= low:
            raise ValueError(f"no score of '{other}' is below {low:g}, so at_least {self.at_least:g} never shuts it")

    def __call__(self, values: Floats, seen: Seen) -> Floats:
        by = seen.scores[self.by]
        opened = np.where(by >= self.at_least, values, self.floor)
        return np.where(np.isnan(by) | np.isnan(values), np.nan, opened)

    def metrics(self, values: Floats, seen: Seen) -> dict[str, float]:
        by = seen.scores[self.by][~np.isnan(values)]
        known = by[~np.isnan(by)]
        return {"open": float((known >= self.at_least).mean())} if len(known) else {}


class Times(Transform):
    """The score times that of the reward `by`: a process is worth what its outcome is (P-GRPO: `R_fmt + R_out + R_out R_proc`)."""

    by: str

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.by,)

    def __call__(self, values: Floats, seen: Seen) -> Floats:
        return values * seen.scores[self.by]


class Lagrange(Transform):
    """A constraint as a reward: `multiplier * (x - bound)`, the multiplier growing while the mean score breaks the bound.

    After every step `multiplier <- min(max(multiplier + rate * lack, 0), most)`; the lack is `at_least - mean`, or `mean - at_most` for a
    reward that is to stay low (whose weight is negative). It is gradient ascent on the dual of "maximise the other rewards, with a mean
    score within the bound". Needs `combine: rewards`: a rule that standardises this reward by itself would divide the multiplier out.
    """

    remembers: ClassVar[bool] = True
    scales: ClassVar[bool] = True
    at_least: float | None = Field(default=None, allow_inf_nan=False)
    at_most: float | None = Field(default=None, allow_inf_nan=False)
    rate: float = Field(default=0.05, gt=0, allow_inf_nan=False)
    start: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    most: float = Field(default=10.0, gt=0, allow_inf_nan=False)

    _multiplier: float | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _one_bound(self) -> Lagrange:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"expected one bound, got at_least {self.at_least} and at_most {self.at_most}")
        return self

    def check_weight(self, weight: float) -> None:
        """Raises ValueError for a weight that teaches to break the bound."""
        if (weight < 0) != (self.at_least is None):
            bound = (
                "at_least asks for a positive weight" if self.at_most is None else "at_most asks for a negative weight"
            )
            raise ValueError(f"{bound}, got {weight:g}: it would teach the opposite")

    @property
    def multiplier(self) -> float:
        """The one in force."""
        return self.start if self._multiplier is None else self._multiplier

    def __call__(self, values: Floats, seen: Seen) -> Floats:
        bound = self.at_most if self.at_least is None else self.at_least
        assert bound is not None
        return self.multiplier * (values - bound)

    def remember(self, values: Floats, seen: Seen) -> None:
        own = values[~np.isnan(values)]
        if len(own):
            mean = float(own.mean())
            lack = mean - (self.at_most or 0.0) if self.at_least is None else self.at_least - mean
            self._multiplier = min(max(self.multiplier + self.rate * lack, 0.0), self.most)

    def metrics(self, values: Floats, seen: Seen) -> dict[str, float]:
        return {"multiplier": self.multiplier}

    def state(self) -> dict[str, Any]:
        return {"multiplier": self.multiplier}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._multiplier = float(state["multiplier"])
