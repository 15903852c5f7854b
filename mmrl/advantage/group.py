"""Advantages relative to the group: GRPO, Dr.GRPO, RLOO and the global-std form of Flow-GRPO.

In all of them an unscorable sample gets 0 and stays out of the statistics, and a group without signal (equal rewards,
or one scorable sample) gets exactly 0.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from mmrl.advantage.stats import batch_std, centred, group_stats
from mmrl.advantage.types import Advantage, Floats, Ints, Scored

Scale = Literal["group", "batch", "max_group", "none"]


def standardised(
    reward: Floats, group: Ints, scale: Scale, ddof: int = 1, eps: float = 1e-4, std_floor: float = 0.0
) -> Floats:
    """`(R - mean_group) / (std + eps)` with the std of the group, of the whole batch, the largest of all groups, or no division.

    Source: GRPO (DeepSeekMath), `scale_rewards` of TRL, `global_std` of Flow-GRPO, GenRL (`max_group`). Groups whose own std is below
    `std_floor` get 0.
    """
    stats = group_stats(reward, group, ddof)
    advantage = centred(reward, stats) * (stats.std >= std_floor)[stats.index]
    if scale == "group":
        return advantage / (stats.std[stats.index] + eps)
    if scale == "batch":
        return advantage / (batch_std(reward, ddof) + eps)
    if scale == "max_group":
        return advantage / (stats.std.max(initial=0.0) + eps)
    return advantage


def leave_one_out(reward: Floats, group: Ints) -> Floats:
    """`n / (n - 1) * (R - mean_group)` = R minus the mean of the others, n scorable samples in the group (RLOO)."""
    stats = group_stats(reward, group)
    factor = stats.size / np.maximum(stats.size - 1, 1)
    return centred(reward, stats) * factor[stats.index]


class GroupAdvantage(Advantage):
    """GRPO. `scale` has no default because published methods disagree: `group`, `batch`, `max_group` (the largest std of
    any group of the step) or `none`."""

    scale: Scale
    ddof: Literal[0, 1] = 1
    eps: float = Field(default=1e-4, gt=0)
    std_floor: float = Field(default=0.0, ge=0)
    """Groups whose standard deviation is below this carry no signal."""

    def __call__(self, scored: Scored) -> Floats:
        return standardised(scored.reward, scored.group, self.scale, self.ddof, self.eps, self.std_floor)


class DrAdvantage(Advantage):
    """Dr.GRPO: `R - mean_group`, no division."""

    def __call__(self, scored: Scored) -> Floats:
        return standardised(scored.reward, scored.group, "none")


class RlooAdvantage(Advantage):
    """RLOO: every sample against the mean of the others in its group."""

    def __call__(self, scored: Scored) -> Floats:
        return leave_one_out(scored.reward, scored.group)


class GlobalAdvantage(Advantage):
    """Flow-GRPO with `global_std`: the mean of the group, the population std of the whole batch."""

    ddof: Literal[0, 1] = 0
    eps: float = Field(default=1e-4, gt=0)

    def __call__(self, scored: Scored) -> Floats:
        return standardised(scored.reward, scored.group, "batch", self.ddof, self.eps)
