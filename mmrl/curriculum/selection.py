"""Which samples of a rollout are trained on, chosen after scoring. Unscorable samples are never kept."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from mmrl.advantage.branch import last_split
from mmrl.advantage.stats import group_stats
from mmrl.advantage.types import Bools, Floats, Ints, Scored
from mmrl.components import Component


class Selection(Component):
    """Base of the kind `selection`."""

    reads_tree: ClassVar[bool] = False
    """`Scored.node` must be there."""

    @property
    def size(self) -> int | None:
        """Most samples kept of one group, None when all may be."""
        return None

    def validate_for(self, group_size: int) -> None:
        """Raise ValueError naming the valid settings when this does not fit groups of `group_size`."""

    def due(self, step: int) -> bool:
        """Whether it selects at `step` (from 0) of the stage; where not, every scorable sample is trained."""
        return True

    def __call__(self, advantage: Floats, scored: Scored) -> Bools:
        """Samples to train on, `(N,)` bool, from `advantage (N,)` computed over all scorable samples. One that reads the tree
        chooses edges, `(N, S)` bool, from `advantage (N, S)`."""
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


class WidthPruned(Selection):
    """BranchGRPO's width pruning: after the last split of a tree only some leaves are trained; the steps before are not touched.

    `per_branch` keeps the better `share` of the leaves below every last split, `extremes` the best and the worst `share` / 2 of all
    leaves of a tree. Only gradients are left out: rewards and advantages are those of the whole tree. From iteration `until` on
    nothing is pruned.
    """

    reads_tree: ClassVar[bool] = True

    mode: Literal["per_branch", "extremes"] = "per_branch"
    share: float = Field(default=0.5, gt=0, le=1)
    until: int | None = Field(default=None, ge=1)

    def due(self, step: int) -> bool:
        return self.until is None or step < self.until

    def __call__(self, advantage: Floats, scored: Scored) -> Bools:
        assert scored.node is not None
        kept = np.repeat(scored.scorable[:, None], scored.node.shape[1], axis=1)
        split = last_split(scored.group, scored.node)
        leaf = advantage[:, -1] if advantage.ndim == 2 else advantage
        parents = scored.group if split < 1 else scored.node[:, split - 1]
        keys = parents if self.mode == "per_branch" else scored.group
        chosen = np.zeros(len(leaf), dtype=bool)
        for key in np.unique(keys):
            rows = np.flatnonzero((keys == key) & scored.scorable)
            order = rows[np.argsort(leaf[rows], kind="stable")]
            count = max(1, int(self.share * len(order) + 1e-9))
            if self.mode == "per_branch":
                chosen[order[len(order) - count :]] = True
            else:
                half = max(1, count // 2)
                chosen[order[:half]] = chosen[order[len(order) - half :]] = True
        kept[:, split + 1 :] &= chosen[:, None]
        return kept
