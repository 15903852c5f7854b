"""A window of consecutive steps that moves over the iterations (MixGRPO, Flow-GRPO-Fast)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mmrl.objective.steps import StepSelector, generator

READS = {
    "progressive": {"every", "stride", "roll_back"},
    "decay": {"every", "every_min", "stride", "roll_back"},
    "exp_decay": {"every", "decay_from", "decay_rate", "stride", "roll_back"},
    "random": set[str](),
}
"""Which options each schedule reads, beside `size` and `range`."""


class WindowSteps(StepSelector):
    """`size` consecutive steps inside `range`.

    Schedules: `progressive` stays `every` iterations at a place and moves by `stride` (0 = stays for ever, `size` = no
    overlap); `decay` shortens the stay linearly from `every` to `every_min` on the way; `exp_decay` shortens it by
    `exp(-decay_rate (place - decay_from))`; `random` draws a place every iteration. At the end of the range the window
    shrinks and never becomes empty; then it starts again (`roll_back`) or stays. Source: MixGRPO `grpo_states.py`.
    """

    size: int = Field(default=4, ge=1)
    schedule: Literal["progressive", "random", "decay", "exp_decay"] = "progressive"
    range: tuple[int, int] = (0, -2)
    """First step and end (exclusive) of the places; an end of 0 or less counts from the last step. MixGRPO: [0, -2]."""
    every: int = Field(default=25, ge=1)
    every_min: int = Field(default=1, ge=1)
    stride: int = Field(default=1, ge=0)
    roll_back: bool = True
    decay_from: int = Field(default=13, ge=0)
    decay_rate: float = Field(default=0.1, ge=0)

    @model_validator(mode="after")
    def _options_are_read(self) -> WindowSteps:
        written = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        unread = written - READS[self.schedule] - {"size", "schedule", "range"}
        if unread:
            raise ValueError(f"schedule {self.schedule} does not read {', '.join(sorted(unread))}")
        return self

    def _bounds(self, num_steps: int) -> tuple[int, int]:
        low, high = self.range
        return low, high if high > 0 else num_steps + high

    def validate_for(self, num_steps: int) -> None:
        low, high = self._bounds(num_steps)
        if not 0 <= low < high <= num_steps:
            raise ValueError(
                f"range [{self.range[0]}, {self.range[1]}] is not inside {num_steps} steps; "
                f"use 0 <= first < end <= {num_steps}, or an end of 0 or less counted from the last step"
            )
        if self.size > high - low:
            raise ValueError(
                f"a window of {self.size} does not fit into steps {low} to {high - 1} of {num_steps}; "
                f"use size 1 to {high - low}, or a wider range"
            )

    def _stay(self, place: int, length: int) -> int:
        if self.schedule == "decay":
            way = place / length
            return max(self.every_min, int(self.every * (1 - way) + self.every_min * way))
        if self.schedule == "exp_decay":
            return math.ceil(self.every * math.exp(-self.decay_rate * max(0, place - self.decay_from)))
        return self.every

    def _place(self, length: int, iteration: int) -> int:
        """First step of the window, counted from the start of the range of `length` steps."""
        if self.stride == 0:
            return 0
        stays = [(place, self._stay(place, length)) for place in range(0, length, self.stride)]
        sweep = sum(stay for _, stay in stays)
        if iteration >= sweep and not self.roll_back:
            return stays[-1][0]
        left = iteration % sweep
        for place, stay in stays:
            if left < stay:
                return place
            left -= stay
        raise AssertionError("the stays add up to the sweep")

    def before_rollout(self, num_steps: int, iteration: int, seed: int) -> Tensor:
        self.validate_for(num_steps)
        low, high = self._bounds(num_steps)
        if self.schedule == "random":
            start = int(generator(seed, iteration).integers(low, high - self.size + 1))
        else:
            start = low + self._place(high - low, iteration)
        plan = torch.zeros(num_steps, dtype=torch.bool)
        plan[start : min(start + self.size, high)] = True
        return plan
