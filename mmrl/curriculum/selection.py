"""Which samples of a rollout are trained on, chosen after scoring. Unscorable samples are never kept."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from mmrl.advantage.stats import group_stats
from mmrl.advantage.types import Bools, Floats, Ints, Scored
from mmrl.components import Component


class Selection(Component):
    """Base of the kind `selection`."""

    @property
    def size(self) -> int | None:
        """Most samples kept of one group, None when all may be."""
        return None

    def validate_for(self, group_size: int) -> None:
        """Raise ValueError naming the valid settings when this does not fit groups of `group_size`."""

    def __call__(self, advantage: Floats, scored: Scored) -> Bools:
        """Samples to train on, `(N,)` bool, from `advantage (N,)` computed over all scorable samples."""
        raise NotImplementedError


def extremes(advantage: Floats, group: Ints, eligible: Bools, keep: int) -> Bools:
    """The `keep / 2` highest and `keep / 2` lowest eligible samples of every group, all of a smaller group; `(N,)` bool.

    Ties go to the earlier sample at the low end and to the later one at the high end.
    Source: best-of-N of DanceGRPO (24 drawn, 8 trained).
    """
    kept = np.zeros(len(advantage), dtype=bool)
    for key in np.unique(group):
        rows = np.flatnonzero((group == key) & eligible)
        order = rows[np.argsort(advantage[rows], kind="stable")]
        half = keep // 2
        kept[order if len(order) <= keep else np.concatenate([order[:half], order[-half:]])] = True
    return kept


class SelectAll(Selection):
    """Every scorable sample."""

    def __call__(self, advantage: Floats, scored: Scored) -> Bools:
        return scored.scorable


class SelectSignal(Selection):
    """Scorable samples of groups whose rewards differ (the filter of DAPO, without the refill)."""

    def __call__(self, advantage: Floats, scored: Scored) -> Bools:
        stats = group_stats(scored.reward, scored.group)
        return scored.scorable & ~stats.flat[stats.index]


class BestOfN(Selection):
    """The best and the worst `keep / 2` samples of every group (DanceGRPO)."""

    keep: int = Field(ge=2, multiple_of=2)

    @property
    def size(self) -> int | None:
        return self.keep

    def validate_for(self, group_size: int) -> None:
        if self.keep > group_size:
            raise ValueError(
                f"keep {self.keep} of groups of {group_size}: use an even number from 2 to {group_size}, or a larger group_size"
            )

    def __call__(self, advantage: Floats, scored: Scored) -> Bools:
        return extremes(advantage, scored.group, scored.scorable & ~np.isnan(advantage), self.keep)
