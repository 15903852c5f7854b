"""Reasoning-answer consistency: does the answer follow from the reasoning before it?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import Field, model_validator

from mmrl.advantage.types import Floats, Scored, Shaping


def supported_bonus(accuracy: Floats, verdict: Floats, weight: float) -> Floats:
    """`weight * accuracy` where the verdict is 1, else 0, `(N,)`. `accuracy` is NaN for unscorable samples, `verdict` NaN
    for those without reasoning or answer: neither earns anything."""
    return np.where((verdict == 1) & ~np.isnan(accuracy), weight * np.nan_to_num(accuracy), 0.0)


class Rac(Shaping):
    """Reports how often the reasoning supports the answer, in training and in evaluation, and with a `weight` rewards it.

    The policy measures `rac`: 1 where it would give the same answer when it is told its reasoning and sees no picture, 0
    where not, NaN for samples without reasoning or answer. In the log: `measured/rac`, the share of supported answers, and
    `measured/rac/right`, the share among right ones (GRPO-CARE's consistency rate, with this verdict in place of a judge).
    """

    weight: float = Field(default=0.0, ge=0)
    """Right answers gain this times their accuracy when they are supported; 0 reports alone."""
    every: int = Field(default=1, ge=1)
    """Steps of the stage between two measurements in training; each is one forward pass over the answers."""
    accuracy: str | None = None
    """Name of the reward that says whether an answer is right (1 or more); default: the total."""

    @model_validator(mode="after")
    def _rewarded_at_every_step(self) -> Rac:
        if self.weight and self.every > 1:
            raise ValueError(f"weight {self.weight:g} rewards every step, so every must be 1, got {self.every}")
        return self

    @property
    def reads_rewards(self) -> tuple[str, ...]:
        return () if self.accuracy is None else (self.accuracy,)

    @property
    def measures(self) -> tuple[str, ...]:
        return ("rac",)

    @property
    def evaluates(self) -> tuple[str, ...]:
        return ("rac",)

    def due(self, step: int) -> bool:
        return step % self.every == 0

    def before(self, scored: Scored) -> Scored:
        if not self.weight:
            return scored
        bonus = supported_bonus(scored.column(self.accuracy), scored.measured("rac"), self.weight)
        return replace(scored, reward=scored.reward + bonus)

    def metrics(self, scored: Scored) -> dict[str, float]:
        verdict = scored.extra.get("rac")
        if verdict is None:
            return {}
        right = verdict[(scored.column(self.accuracy) >= 1 - 1e-9) & ~np.isnan(verdict)]
        return {"measured/rac/right": float(right.mean())} if right.size else {}
