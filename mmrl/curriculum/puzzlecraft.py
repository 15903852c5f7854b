"""PuzzleCraft: a group counts by how hard its puzzle is for the policy and by how much its answers differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from mmrl.advantage.majority import parsed
from mmrl.advantage.types import Floats, Ints, Scored, Shaping
from mmrl.errors import UserError


def group_weights(reward: Floats, answers: Sequence[str | None], group: Ints, power: float, floor: float) -> Floats:
    """`4 p (1 - p) * d^power` of each sample's group, with `floor` for the last factor in a collapsed group (d = 0); `(N,)`
    float64, 0 for unscorable samples.

    p is the group's mean reward (0 to 1, partial credit included), d = 1 - the share of its most frequent answer, a
    missing answer being one answer like others. Source: PuzzleCraft (arXiv 2512.14944), reconstructed.
    """
    weights = np.zeros(len(reward))
    for key in np.unique(group):
        rows = np.flatnonzero((group == key) & ~np.isnan(reward)).tolist()
        if len(rows):
            p = float(reward[rows].mean())
            largest = max(Counter(answers[row] for row in rows).values())
            dispersion = 1 - largest / len(rows)
            weights[rows] = 4 * p * (1 - p) * (dispersion**power if dispersion else floor)
    return weights


class PuzzleCraft(Shaping):
    """Advantages times the weight of their group; `strength` 0 is the base method, in between both are mixed."""

    reads_answers: ClassVar[bool] = True

    power: float = Field(default=1.0, ge=0)
    floor: float = Field(default=0.1, ge=0, le=1)
    """What stands for the dispersion of a group with one answer; a small dispersion is not lifted to it."""
    strength: float = Field(default=1.0, ge=0, le=1)
    reward: str | None = None
    """Name of the reward whose mean is the difficulty; default: the total."""

    @property
    def reads_rewards(self) -> tuple[str, ...]:
        return () if self.reward is None else (self.reward,)

    def __call__(self, advantage: Floats, scored: Scored) -> Floats:
        if not self.strength:
            return advantage
        reward = scored.column(self.reward)
        off = reward[(reward < 0) | (reward > 1)]
        if off.size:
            raise UserError(
                f"puzzlecraft reads a success between 0 and 1, got {off[0]:g}; name the reward to read (reward: NAME)"
            )
        weights = group_weights(reward, parsed(scored), scored.group, self.power, self.floor)
        return advantage * (1 - self.strength + self.strength * weights)
