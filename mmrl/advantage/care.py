"""GRPO-CARE: correct answers earn more when the reasoning before them makes them likely."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import Field

from mmrl.advantage.types import Floats, Following, Ints, Scored, Shaping

LEAST_ACCURACY = 0.1
SLACK = 0.01
LARGEST = 0.95


def consistency_bonus(accuracy: Floats, consistency: Floats, group: Ints, weight: float) -> Floats:
    """Bonus `(N,)`: `weight * accuracy` where the accuracy is at least the group's mean (and 0.1) and the consistency,
    clamped to 0.95, at least the group's mean less 0.01; else 0.

    `accuracy (N,)` is NaN for unscorable samples, `consistency (N,)` NaN where no answer was found: neither enters a
    mean or earns a bonus. Source: GRPO-CARE (arXiv 2506.16141).
    """
    clamped = np.minimum(consistency, LARGEST)
    bonus = np.zeros(len(accuracy))
    for key in np.unique(group):
        rows = (group == key) & ~np.isnan(accuracy)
        known = rows & ~np.isnan(clamped)
        if not known.any():
            continue
        right = accuracy >= max(float(accuracy[rows].mean()), LEAST_ACCURACY)
        likely = clamped >= float(clamped[known].mean()) - SLACK
        earns = known & right & likely
        bonus[earns] = weight * accuracy[earns]
    return bonus


class GrpoCare(Shaping):
    """Adds the consistency bonus to the reward. `consistency` is measured by the policy: the mean probability of the
    answer's tokens, given prompt and reasoning, under a slow copy of the trained weights, which follows them by `decay`
    every `every` optimizer steps."""

    weight: float = Field(default=0.5, ge=0)
    decay: float = Field(default=0.995, ge=0, le=1)
    """The slow copy becomes `decay` times itself plus `1 - decay` times the weights. 1: the weights the stage started with."""
    every: int = Field(default=10, ge=1)
    accuracy: str | None = None
    """Name of the reward that says whether an answer is right; default: the total."""

    @property
    def reads_rewards(self) -> tuple[str, ...]:
        return () if self.accuracy is None else (self.accuracy,)

    @property
    def measures(self) -> tuple[str, ...]:
        return ("consistency",) if self.weight else ()

    @property
    def follows(self) -> Following | None:
        return Following(self.decay, self.every) if self.weight else None

    def before(self, scored: Scored) -> Scored:
        if not self.weight:
            return scored
        accuracy = scored.column(self.accuracy)
        bonus = consistency_bonus(accuracy, scored.measured("consistency"), scored.group, self.weight)
        return replace(scored, reward=scored.reward + bonus)
