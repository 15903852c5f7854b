"""Which latents a rollout shares, before anything is drawn: the samples of a group are the leaves of a tree.

Two samples are in one node after k steps when they have the same caption, start noise and noise of every step so far; the network
runs once per node and step. Windows, shared start noise, fan-out and branching differ only in which edges draw noise, and in whom
that noise belongs to:

- an edge that one sample draws for itself (every SDE step of a rollout without a tree) takes the next noise of the sample's own stream;
- an edge of a branching tree takes noise that is a function of the group's seed and the path of branches to it, so that a group that
  is cut between two processes grows the same tree on both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmrl.rollout import Draw
from mmrl.seeding import derive_seed


@dataclass(frozen=True)
class Forest:
    """N samples over S steps.

    `node (N, S + 1)` int64: the node that a sample is in after k steps, numbered from 0 over the whole forest; `noisy (N, S)` bool:
    the edge draws noise; `path (N, S)` int64: of a branching tree, the node after each step under a name that is the same on every
    process (0 without a tree); `part (N,)` int64: samples of a group are compared inside their part; `seeds` (by node): of the
    noise on the edge to a node of a branching tree, (of what siblings share, the node's own); `split (S,)` bool: steps at which the
    tree branches.
    """

    node: Tensor
    noisy: Tensor
    path: Tensor
    part: Tensor
    seeds: dict[int, tuple[int, int]]
    split: Tensor

    @property
    def shares(self) -> bool:
        """Some samples share a node beyond the start noise."""
        return any(len(self.node[:, k].unique()) < len(self.node) for k in range(1, self.node.shape[1]))

    def calls(self) -> int:
        """Network passes of the rollout, without guidance: one per node and step."""
        return sum(len(self.node[:, k].unique()) for k in range(self.noisy.shape[1]))

    def edges(self, trained: Tensor) -> int:
        """Distinct noisy edges at the steps `trained (S,)` bool or `(N, S)` bool."""
        chosen = self.noisy & trained
        return sum(len(self.node[chosen[:, k], k + 1].unique()) for k in range(self.noisy.shape[1]))


def forest(plan: Any, draws: Sequence[Draw], selected: Tensor) -> Forest:
    """The forest of a rollout of `draws` that may train the steps `selected (S,)` bool, under a `DenoisingPlan`.

    A pure function, the same on every process for the samples that it has.
    """
    steps = plan.num_steps
    branches = _branches(plan, draws)
    noisy = _noisy(plan, draws, selected)
    split = torch.zeros(steps, dtype=torch.bool)
    if plan.branch is not None:
        split[list(plan.branch.at)] = True
    ids: dict[tuple[Any, ...], int] = {}
    seeds: dict[int, tuple[int, int]] = {}
    rows: list[list[int]] = []
    names = torch.zeros(len(draws), steps, dtype=torch.int64)
    for i, draw in enumerate(draws):
        shared = plan.start_noise == "shared"
        place = ids.setdefault(
            (draw.prompt.text, draw.prompt.id, "shared" if shared else "own", draw.group_seed if shared else draw.seed),
            len(ids),
        )
        path: tuple[int, ...] = ()
        row = [place]
        for k in range(steps):
            if not noisy[i, k]:
                how: tuple[Any, ...] = ("ode",)
            elif plan.branch is None:
                how = ("own", draw.seed)
            else:
                how = ("tree",)
            if split[k]:
                path = (*path, branches[i][k])
            if how[0] == "tree":
                how = ("tree", path)
            place = ids.setdefault((place, k, *how), len(ids))
            if how[0] == "tree" and place not in seeds:
                common = derive_seed(draw.group_seed, "branch", k, *(path[:-1] if split[k] else path))
                seeds[place] = (common, derive_seed(draw.group_seed, "branch", k, "own", *path))
            if plan.branch is not None:
                names[i, k] = derive_seed(draw.group_seed, draw.group, "node", k, *path)
            row.append(place)
        rows.append(row)
    return Forest(torch.tensor(rows), noisy, names, _parts(plan, draws), seeds, split)


def _branches(plan: Any, draws: Sequence[Draw]) -> list[dict[int, int]]:
    """Which child a sample goes to at every split: the digits of its number in its group, the first split's first."""
    if plan.branch is None:
        return [{} for _ in draws]
    at, factor = plan.branch.at, plan.branch.factor
    return [
        {k: draw.member // factor ** (len(at) - 1 - place) % factor for place, k in enumerate(at)} for draw in draws
    ]


def _noisy(plan: Any, draws: Sequence[Draw], selected: Tensor) -> Tensor:
    """Edges that draw noise, `(N, S)` bool."""
    found = torch.zeros(len(draws), plan.num_steps, dtype=torch.bool)
    if plan.sampler.kind == "ode" or plan.sampler.level == 0:
        return found
    if plan.fan_out is not None:
        at = plan.fan_out.at
        for i, draw in enumerate(draws):
            found[i, at[draw.member % len(at)]] = True
        return found
    found[:] = True if plan.stochastic == "all" else selected.bool()
    if plan.branch is not None:
        found[:, list(plan.branch.at)] = True
    return found


def _parts(plan: Any, draws: Sequence[Draw]) -> Tensor:
    if plan.fan_out is None:
        return torch.zeros(len(draws), dtype=torch.int64)
    return torch.tensor([draw.member % len(plan.fan_out.at) for draw in draws])
