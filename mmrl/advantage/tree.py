"""Advantages of samples that share the first part of their way (TreePO, SPO).

`node (N, S)` says in which node of a tree a sample is after each step: a node is a run of steps with one id, two samples
are together where their ids are equal, and -1 is no node (steps that were not drawn). Ids of different groups differ. A
group is the root of its samples. Source: TreePO (arXiv 2508.17445, multimodal-art-projection/TreePO).
"""

from __future__ import annotations

from collections import defaultdict
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from mmrl.advantage.stats import FLAT, group_stats
from mmrl.advantage.types import Advantage, Floats, Ints, Scored
from mmrl.errors import UserError

Path = tuple[int, ...]
"""Group and nodes from the root to a node: what identifies it."""


def paths(group: Ints, node: Ints) -> list[Path]:
    """The way of every sample: its group and the ids of its nodes in order."""
    found = []
    for key, row in zip(group.tolist(), node.tolist(), strict=True):
        way = [key]
        before = -1
        for one in row:
            if one not in (-1, before):
                way.append(one)
                before = one
        found.append(tuple(way))
    return found


def apart(group: Ints, node: Ints) -> Ints:
    """`node (N, S)` renumbered so that ids of different groups differ, whatever each group calls its nodes; -1 stays."""
    keys, trees = np.unique(group, return_inverse=True)
    numbers = np.unique(node, return_inverse=True)[1]
    return np.where(node == -1, -1, numbers.reshape(node.shape) * len(keys) + trees[:, None]).astype(np.int64)


def subgroup(
    reward: Floats,
    group: Ints,
    node: Ints,
    weighting: Literal["size", "mean"] = "size",
    drop_flat: bool = False,
    alone: bool = False,
) -> Floats:
    """Each sample against its group and against everyone who shares its first nodes, `(N,)`; NaN where `reward` is.

    The mean of `R - mean of the subgroup` over the group and the subgroups of two or more below it, weighted by their
    `size` or equally; with `drop_flat` without the subgroups (never the group) whose rewards are equal, and with `alone`
    also over those of one sample, which only add their weight.
    """
    rows = np.flatnonzero(~np.isnan(reward)).tolist()
    ways = paths(group, node)
    members: dict[Path, list[float]] = defaultdict(list)
    for row in rows:
        for depth in range(1, len(ways[row]) + 1):
            members[ways[row][:depth]].append(float(reward[row]))
    found = np.full(len(reward), np.nan)
    for row in rows:
        total = weights = 0.0
        for depth in range(1, len(ways[row]) + 1):
            own = np.array(members[ways[row][:depth]])
            if depth > 1 and ((len(own) < 2 and not alone) or (drop_flat and np.ptp(own) <= FLAT)):
                continue
            weight = len(own) if weighting == "size" else 1
            total, weights = total + weight * (reward[row] - own.mean()), weights + weight
        found[row] = total / weights
    return found


def segments(value: Floats, group: Ints, node: Ints, sibling_std: bool) -> Floats:
    """Per step `(N, S)`, the value of its node less that of the node before it (the first: its value itself); 0 in no node.

    The value of a node is the mean over its children, the samples that end in it (mean of their `value (N,)`) being one of
    them. With `sibling_std` values are standardised (population std) among the children of one node, where it has several
    (SPO, of rewards; TreePO credits `subgroup(..., alone=True)` without it). Samples of value NaN get 0 and count nowhere.
    """
    ways = paths(group, node)
    leaves: dict[Path, list[float]] = defaultdict(list)
    for way, one in zip(ways, value.tolist(), strict=True):
        if not np.isnan(one):
            leaves[way].append(one)
    children: dict[Path, list[Path]] = defaultdict(list)
    every = {leaf[:depth] for leaf in leaves for depth in range(1, len(leaf) + 1)}
    for way in sorted(every, key=lambda one: (-len(one), one)):
        children[way[:-1]].append(way)
    known: dict[Path, float] = {}
    for way in (way for own in list(children.values()) for way in own):  # the longest first: children before parents
        ends = [float(np.mean(leaves[way]))] if way in leaves else []
        known[way] = float(np.mean([known[child] for child in children.get(way, ())] + ends))
    worth = dict(known)
    for parent, own in children.items():
        if not sibling_std or not parent or len(own) < 2:
            continue
        values = np.array([known[child] for child in own])
        spread = values.std() if np.ptp(values) > FLAT else np.inf
        worth |= dict(zip(own, ((values - values.mean()) / spread).tolist(), strict=True))
    found = np.zeros(node.shape)
    for row in np.flatnonzero(~np.isnan(value)).tolist():
        way, depth, before = ways[row], 1, -1
        for step, one in enumerate(node[row].tolist()):
            if one == -1:
                continue
            if one != before:
                depth, before = depth + 1, one
            found[row, step] = worth[way[:depth]] - (worth[way[: depth - 1]] if depth > 2 else 0.0)
    return found


def whitened(values: Floats, weight: Floats, eps: float = 1e-8) -> Floats:
    """`(x - mean) / sqrt(var + eps)` over all entries, each counting `weight` times (var with n - 1); 0 where it is 0."""
    number = weight.sum()
    if number < 2:
        return np.zeros_like(values)
    mean = (values * weight).sum() / number
    variance = ((values - mean) ** 2 * weight).sum() / (number - 1)
    return (values - mean) / np.sqrt(variance + eps) * (weight > 0)


class TreePo(Advantage):
    """TreePO: every sample against all it shares a beginning with, then whitened over the steps of the batch."""

    reads_tree: ClassVar[bool] = True

    weighting: Literal["size", "mean"] = "size"
    """What a subgroup counts: its number of samples, or all the same."""
    drop_flat: bool = False
    """Leave out subgroups whose rewards are equal."""
    eps: float = Field(default=1e-8, gt=0)

    def __call__(self, scored: Scored) -> Floats:
        if scored.node is None:
            raise UserError("advantage treepo reads which steps samples share, and this rollout has no tree")
        advantage = subgroup(scored.reward, scored.group, scored.node, self.weighting, self.drop_flat)
        white = whitened(np.nan_to_num(advantage), np.where(scored.scorable, scored.measured("length"), 0.0), self.eps)
        stats = group_stats(scored.reward, scored.group)
        return np.where(stats.flat[stats.index], 0.0, white)
