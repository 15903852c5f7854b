"""Advantages on the edges of a branching tree (BranchGRPO): leaf rewards are fused upward and compared depth by depth.

`node (N, S)` names the node that each leaf is in after every step; a group is one tree. Source: BranchGRPO `train_branchgrpo_flux.py`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from mmrl.advantage.types import Advantage, Bools, Floats, Ints, Scored
from mmrl.errors import UserError

Fusion = Literal["uniform", "path"]


def fused(reward: Floats, node: Ints, log_prob: Floats | None, fusion: Fusion) -> Floats:
    """The value of the node of each leaf after every step, `(N, S)`; NaN where no leaf below has a reward.

    `uniform`: the mean of the leaves below. `path`: the mean of the children, weighted by the softmax of the log-probs of the edges to
    them. Leaves whose `reward (N,)` is NaN count nowhere. Raises ValueError for `path` without log-probs.
    """
    found = np.full(node.shape, np.nan)
    if fusion == "uniform":
        for k in range(node.shape[1]):
            for rows in _members(node[:, k]):
                own = reward[rows]
                if not np.isnan(own).all():
                    found[rows, k] = np.nanmean(own)
        return found
    if log_prob is None:
        raise ValueError("fusion 'path' weighs by log-probs, and there are none")
    below = reward
    for k in range(node.shape[1] - 1, -1, -1):
        for rows in _members(node[:, k]):
            children = rows if k + 1 == node.shape[1] else [int(part[0]) for part in _members(node[rows, k + 1], rows)]
            children = [row for row in children if not np.isnan(below[row])]
            if not children:
                continue
            if k + 1 == node.shape[1]:
                found[rows, k] = float(np.mean([below[row] for row in children]))
                continue
            weight = np.exp(log_prob[children, k + 1] - log_prob[children, k + 1].max())
            found[rows, k] = float((weight / weight.sum() * below[children]).sum())
        below = found[:, k]
    return found


def by_depth(value: Floats, group: Ints, node: Ints, eps: float = 1e-8, floor: float = 1e-6) -> Floats:
    """`(v - mean) / (std + eps)` over the distinct nodes of one tree and depth (std with n - 1), `(N, S)` from `value (N, S)`; 0
    where a depth has one node, or a std below `floor`."""
    found = np.zeros(value.shape)
    for tree in np.unique(group):
        mine = np.flatnonzero(group == tree)
        for k in range(value.shape[1]):
            first = np.unique(node[mine, k], return_index=True)[1]
            own = value[mine[first], k]
            own = own[~np.isnan(own)]
            if len(own) < 2 or own.std(ddof=1) < floor:
                continue
            found[mine, k] = (value[mine, k] - own.mean()) / (own.std(ddof=1) + eps)
    return np.nan_to_num(found)


def once(node: Ints, keep: Bools) -> Bools:
    """Of the samples `keep (N, S)` that are in one node after a step the first alone, `(N, S)`: a shared edge is trained once."""
    found = np.zeros(node.shape, dtype=bool)
    for k in range(node.shape[1]):
        rows = np.flatnonzero(keep[:, k])
        found[rows[np.unique(node[rows, k], return_index=True)[1]], k] = True
    return found


def last_split(group: Ints, node: Ints) -> int:
    """The last step at which a node has several children; -1 where none has."""
    for k in range(node.shape[1] - 1, -1, -1):
        before = group if k == 0 else node[:, k - 1]
        if len({*zip(before.tolist(), node[:, k].tolist(), strict=True)}) > len(set(before.tolist())):
            return k
    return -1


def _members(ids: Ints, rows: Ints | None = None) -> list[Ints]:
    """The rows of every distinct id, in order of appearance (of `rows`, which the ids belong to, where given)."""
    order = np.arange(len(ids)) if rows is None else np.asarray(rows)
    return [order[ids == one] for one in dict.fromkeys(ids.tolist())]


class BranchAdvantage(Advantage):
    """BranchGRPO: the reward of the leaves, fused upward, against the other nodes of the same tree and depth; an edge has the advantage of
    the node that it leads to."""

    reads_tree: ClassVar[bool] = True
    per_step: ClassVar[bool] = True

    fusion: Fusion = "uniform"
    eps: float = Field(default=1e-8, gt=0)
    std_floor: float = Field(default=1e-6, ge=0)

    def __call__(self, scored: Scored) -> Floats:
        if scored.node is None:
            raise UserError(
                "advantage branch reads which steps samples share; give the rollout a tree (rollout.branch)"
            )
        value = fused(scored.reward, scored.node, scored.log_prob, self.fusion)
        found = by_depth(value, scored.group, scored.node, self.eps, self.std_floor)
        return np.where(scored.scorable[:, None], found, 0.0)
