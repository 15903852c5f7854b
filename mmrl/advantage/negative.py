"""Advantages that also learn from groups in which nothing is right: NGRPO, and the sign of the reward alone."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from mmrl.advantage.stats import FLAT
from mmrl.advantage.types import Advantage, Floats, Ints, Scored
from mmrl.errors import UserError


def with_virtual(reward: Floats, group: Ints, best: float, virtual: int = 1, eps: float = 1e-6) -> Floats:
    """`(R - mean) / (std + eps)` with the mean and std (ddof 1) of the group's scorable rewards and `virtual` rewards of
    `best`. A group that is wrong throughout becomes negative, one that is right throughout stays 0, as does a group with
    one scorable sample. Source: NGRPO (arXiv 2509.18851)."""
    found = np.zeros(len(reward))
    for key in np.unique(group):
        rows = (group == key) & ~np.isnan(reward)
        values = np.append(reward[rows], [best] * virtual)
        if rows.sum() > 1 and np.ptp(values) > FLAT * max(1.0, abs(float(values.mean()))):
            found[rows] = (reward[rows] - values.mean()) / (values.std(ddof=1) + eps)
    return found


class Ngrpo(Advantage):
    """NGRPO: the group statistics of GRPO with a virtual sample that reaches the largest reward. Its clip is
    `{name: clip, low: 0.16, high: 0.24}`; selection `signal` would drop the groups it is made for."""

    best: float = 1.0
    """The largest reward that can be reached."""
    virtual: int = Field(default=1, ge=1)
    eps: float = Field(default=1e-6, gt=0)

    def __call__(self, scored: Scored) -> Floats:
        above = scored.reward[scored.reward > self.best + 1e-9]
        if above.size:
            raise UserError(
                f"advantage ngrpo: a reward of {above[0]:g} is above best {self.best:g}; set best to the largest"
            )
        return with_virtual(scored.reward, scored.group, self.best, self.virtual, self.eps)


class SignAdvantage(Advantage):
    """`positive` for samples of reward 1 or more, `-negative` for the others, without a group: NSR (0, 1), PSR (1, 0),
    W-REINFORCE (0.1, 1). Source: arXiv 2506.01347."""

    positive: float = Field(default=0.0, ge=0)
    negative: float = Field(default=1.0, ge=0)

    def __call__(self, scored: Scored) -> Floats:
        sign = np.where(scored.reward >= 1 - 1e-9, self.positive, -self.negative)
        return np.where(scored.scorable, sign, 0.0)
