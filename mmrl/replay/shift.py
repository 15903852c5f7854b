"""How samples fare under new rewards compared with the old ones. Pure functions of numbers.

Shapes: N samples. NaN is a sample without a reward; only samples that have both are compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from mmrl.advantage.types import Bools, Floats, Ints
from mmrl.alarms import correlation


@dataclass(frozen=True)
class Shift:
    """Of `samples`, `compared` have an old and a new reward. None is what cannot be said (nothing to compare, or no variation)."""

    samples: int
    compared: int
    old_mean: float | None
    new_mean: float | None
    pearson: float | None
    spearman: float | None
    flipped: float | None
    """Share of compared samples whose advantage has the other sign."""
    best: float | None
    """Share of groups (with 2 or more compared samples) of which no sample is the best one before and after."""
    moved: float | None
    """Mean |new - old advantage| of compared samples."""
    groups: int
    flat_old: int
    flat_new: int
    """Groups in which every advantage is 0."""


def shift(old: Floats, new: Floats, before: Floats, after: Floats, group: Ints) -> Shift:
    """From totals `old`, `new (N,)` and advantages `before`, `after (N,)`, of which only those inside one `group (N,)` compare."""
    both = np.isfinite(old) & np.isfinite(new)
    found = [rows for key in np.unique(group) if (rows := np.flatnonzero((group == key) & both)).size > 1]
    other_best = [not (best(old[rows]) & best(new[rows])).any() for rows in found]
    keys = np.unique(group)
    return Shift(
        samples=len(old),
        compared=int(both.sum()),
        old_mean=_mean(old[np.isfinite(old)]),
        new_mean=_mean(new[np.isfinite(new)]),
        pearson=correlation(old, new),
        spearman=rank_correlation(old, new),
        flipped=_mean(flips(before, after)[both]),
        best=_mean(np.array(other_best)),
        moved=_mean(np.abs(after - before)[both]),
        groups=len(keys),
        flat_old=sum(not before[group == key].any() for key in keys),
        flat_new=sum(not after[group == key].any() for key in keys),
    )


def flips(before: Floats, after: Floats) -> Bools:
    """(N,) bool: one advantage is positive and the other negative; 0 is neither."""
    return np.sign(before) * np.sign(after) < 0


def best(total: Floats) -> Bools:
    """(n,) bool: no other of the samples has more."""
    return total == total.max()


def rank_correlation(a: Floats, b: Floats) -> float | None:
    """Spearman's, equal values sharing their mean rank, over samples that have both; None where one of them does not vary."""
    both = np.isfinite(a) & np.isfinite(b)
    return correlation(rankdata(a[both]), rankdata(b[both])) if both.any() else None


def changed_most(before: Floats, after: Floats, group: Ints, number: int) -> list[Ints]:
    """Rows of the `number` groups with the largest mean |new - old advantage|, the largest first, of those where it is not 0."""
    size = {key: float(np.abs(after - before)[group == key].mean()) for key in np.unique(group).tolist()}
    order = sorted((key for key in size if size[key]), key=lambda key: (-size[key], key))
    return [np.flatnonzero(group == key) for key in order[:number]]


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None
