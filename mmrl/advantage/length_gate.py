"""GRPO-lambda: short answers are preferred only where the group already solves its prompt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import Field

from mmrl.advantage.types import Floats, Ints, Scored, Shaping


def length_penalty(accuracy: Floats, length: Floats, group: Ints, gate: float, weight: float) -> Floats:
    """What is added to the reward `(N,)`: `-weight * z` of the correct samples (accuracy 1 or more) of groups of which at
    least the share `gate` is correct, else 0.

    z is the length less the mean over the standard deviation (ddof 1) of the group's correct samples; 0 where those are
    equally long. `accuracy (N,)` is NaN for unscorable samples. Source: GRPO-lambda (arXiv 2505.18086).
    """
    added = np.zeros(len(accuracy))
    for key in np.unique(group):
        rows = (group == key) & ~np.isnan(accuracy)
        correct = rows & (accuracy >= 1 - 1e-9)
        if correct.sum() < 2 or correct.sum() < gate * rows.sum() - 1e-9:
            continue
        own = length[correct].astype(np.float64)
        spread = own.std(ddof=1)
        if spread > 0:
            added[correct] = -weight * (own - own.mean()) / spread
    return added


class GrpoLambda(Shaping):
    """Correct samples of well solved groups earn `1 - weight * z(length)`; other groups keep their reward."""

    gate: float = Field(default=0.75, ge=0, le=1)
    """The share of correct samples from which on length counts."""
    weight: float = Field(default=0.1, ge=0)
    accuracy: str | None = None
    """Name of the reward that says whether an answer is right; default: the total."""

    @property
    def reads_rewards(self) -> tuple[str, ...]:
        return () if self.accuracy is None else (self.accuracy,)

    def before(self, scored: Scored) -> Scored:
        if not self.weight:
            return scored
        accuracy = scored.column(self.accuracy)
        added = length_penalty(accuracy, scored.measured("length"), scored.group, self.gate, self.weight)
        return replace(scored, reward=scored.reward + added)
