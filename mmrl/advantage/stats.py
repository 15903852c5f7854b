"""Statistics of rewards inside groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmrl.advantage.types import Bools, Floats, Ints

FLAT = 1e-6
"""A group whose rewards differ by no more than this (relative to max(1, |mean|)) carries no signal.

Comparing max - min instead of the standard deviation: a float32 residue of 6e-8 divided by a small constant is not 0.
"""


@dataclass(frozen=True)
class GroupStats:
    """M groups over their scorable samples. `index (N,)` maps a sample to its group.

    `size (M,)` int64; `mean (M,)` and `std (M,)` float64, 0 where undefined; `flat (M,)` bool: the group has no signal
    (all rewards equal, one scorable sample, or none).
    """

    index: Ints
    size: Ints
    mean: Floats
    std: Floats
    flat: Bools

    @property
    def singletons(self) -> int:
        """Number of groups with one scorable sample: they have no relative advantage and deserve a warning."""
        return int((self.size == 1).sum())

    def metrics(self) -> dict[str, float]:
        """Numbers for the log: mean spread inside groups, share of groups without signal, number of singletons."""
        comparable = self.size > 1
        return {
            "group_std": float(self.std[comparable].mean()) if comparable.any() else 0.0,
            "zero_signal_share": float(self.flat.mean()) if len(self.flat) else 0.0,
            "singleton_groups": float(self.singletons),
        }


def group_stats(reward: Floats, group: Ints, ddof: int = 1) -> GroupStats:
    """Group statistics of `reward (N,)` (NaN = left out) under `group (N,)`; groups may be in any order and size.

    A group of one or none has max - min <= 0 and is flat. `ddof` 1 is the unbiased standard deviation of most token trainers, 0 the population form of Flow-GRPO.
    """
    keys, index = np.unique(group, return_inverse=True)
    count = len(keys)
    scorable = ~np.isnan(reward)
    rows, values = index[scorable], reward[scorable].astype(np.float64)
    size = np.bincount(rows, minlength=count)
    mean = np.bincount(rows, values, count) / np.maximum(size, 1)
    squares = np.bincount(rows, (values - mean[rows]) ** 2, count)
    std = np.sqrt(squares / np.maximum(size - ddof, 1)) * (size > 1)
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(low, rows, values)
    np.maximum.at(high, rows, values)
    flat = high - low <= FLAT * np.maximum(1.0, np.abs(mean))
    return GroupStats(index, size, mean, std, flat)


def batch_std(reward: Floats, ddof: int = 1) -> float:
    """Standard deviation of all scorable rewards; 0 for fewer than two."""
    values = reward[~np.isnan(reward)].astype(np.float64)
    return float(values.std(ddof=ddof)) if len(values) > 1 else 0.0


def centred(reward: Floats, stats: GroupStats) -> Floats:
    """`R - mean of the group (N,)`; exactly 0 in groups without signal and for unscorable samples."""
    signal = ~np.isnan(reward) & ~stats.flat[stats.index]
    return np.where(signal, reward - stats.mean[stats.index], 0.0)
