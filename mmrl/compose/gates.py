"""Scores that depend on what another reward says of the sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, PrivateAttr

from mmrl.advantage.types import Floats
from mmrl.compose.transform import Seen, Transform


class Gate(Transform):
    """The score where the reward `by` is at least `at_least`, else `floor`."""

    by: str
    at_least: float = Field(allow_inf_nan=False)
    floor: float = Field(default=0.0, allow_inf_nan=False)

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.by,)

    def __call__(self, values: Floats, seen: Seen) -> Floats:
        by = seen.scores[self.by]
        opened = np.where(by >= self.at_least, values, self.floor)
        return np.where(np.isnan(by) | np.isnan(values), np.nan, opened)


class Times(Transform):
    """The score times that of the reward `by`: a process is worth what its outcome is (P-GRPO: `R_fmt + R_out + R_out R_proc`)."""

    by: str

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.by,)

    def __call__(self, values: Floats, seen: Seen) -> Floats:
        return values * seen.scores[self.by]


class Lagrange(Transform):
    """A constraint as a reward: `multiplier * (x - at_least)`, the multiplier growing while the mean score is below `at_least`.

    After every step `multiplier <- min(max(multiplier + rate (at_least - mean), 0), most)`; gradient ascent on the dual of
    "maximise the other rewards, with a mean score of `at_least` or more".
    """

    remembers: ClassVar[bool] = True
    at_least: float = Field(allow_inf_nan=False)
    rate: float = Field(default=0.05, gt=0, allow_inf_nan=False)
    start: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    most: float = Field(default=10.0, gt=0, allow_inf_nan=False)

    _multiplier: float | None = PrivateAttr(default=None)

    @property
    def multiplier(self) -> float:
        """The one in force."""
        return self.start if self._multiplier is None else self._multiplier

    def __call__(self, values: Floats, seen: Seen) -> Floats:
        return self.multiplier * (values - self.at_least)

    def remember(self, values: Floats, seen: Seen) -> None:
        own = values[~np.isnan(values)]
        if len(own):
            moved = self.multiplier + self.rate * (self.at_least - float(own.mean()))
            self._multiplier = min(max(moved, 0.0), self.most)

    def metrics(self) -> dict[str, float]:
        return {"multiplier": self.multiplier}

    def state(self) -> dict[str, Any]:
        return {"multiplier": self.multiplier}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._multiplier = float(state["multiplier"])
