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

from mmrl.generative.solver import tail
from mmrl.rollout import Draw
from mmrl.seeding import derive_seed


@dataclass(frozen=True)
class Forest:
    """N samples over S steps.

    `node (N, S + 1)` int64: the node that a sample is in after k steps, numbered from 0 over the whole forest; `noisy (N, S)` bool:
    the edge draws noise; `trained (N, S)` bool: and may be trained; `path (N, S)` int64: of a branching tree, the node after each
    step under a name that is the same on every process (0 without a tree); `part (N,)` int64: samples of a group are compared
    inside their part (None: with the whole group); `seeds` (by node): of the noise on the edge to a node of a branching tree, (of
    what siblings share, the node's own); `split (S,)` bool: steps at which the tree branches. From step `ends` on (S without Flash)
    the rollout is finished in `rest` larger steps.
    """

    node: Tensor
    noisy: Tensor
    trained: Tensor
    path: Tensor
    part: Tensor | None
    seeds: dict[int, tuple[int, int]]
    split: Tensor
    ends: int
    rest: int

    def calls(self) -> int:
        """Network passes of the rollout, without guidance: one per node and step."""
        nodes = [len(column.unique()) for column in self.node.T]
        return sum(nodes[: self.ends]) + self.rest * nodes[self.ends]

    def edges(self, trained: Tensor) -> int:
        """Distinct noisy edges at the steps `trained (S,)` bool or `(N, S)` bool."""
        chosen = self.noisy & trained
        return sum(len(self.node[chosen[:, k], k + 1].unique()) for k in range(self.noisy.shape[1]))


def forest(plan: Any, draws: Sequence[Draw], selected: Tensor) -> Forest:
    """The forest of a rollout of `draws` that may train the steps `selected (S,)` bool, under a `DenoisingPlan`.

    A pure function, the same on every process for the samples that it has.
    """
    steps, tree = plan.num_steps, plan.branch is not None
    split = forced(plan) if tree else torch.zeros(steps, dtype=torch.bool)
    noisy = _noisy(plan, draws, selected)
    branches = _branches(plan, draws)
    ids: dict[tuple[Any, ...], int] = {}
    seeds: dict[int, tuple[int, int]] = {}
    rows: list[list[int]] = []
    names = torch.zeros(len(draws), steps, dtype=torch.int64)
    for i, draw in enumerate(draws):
        start = ("shared", draw.group_seed) if plan.start_noise == "shared" else ("own", draw.seed)
        row = [ids.setdefault((draw.prompt.text, draw.prompt.id, *start), len(ids))]
        path: tuple[int, ...] = ()
        for k in range(steps):
            above, path = path, (*path, branches[i][k]) if split[k] else path
            noise: tuple[Any, ...] = ()
            if noisy[i, k]:
                noise = path if tree else ("own", draw.seed)
            place = ids.setdefault((row[-1], k, *noise), len(ids))
            if tree:
                names[i, k] = derive_seed(draw.group_seed, draw.group, "node", k, *path)
            if tree and noisy[i, k] and place not in seeds:
                common = derive_seed(draw.group_seed, "branch", k, *above)
                seeds[place] = common, derive_seed(draw.group_seed, "branch", k, "own", *path)
            row.append(place)
        rows.append(row)
    trained = noisy & (selected.bool() | forced(plan)) & counts(plan)
    return Forest(
        torch.tensor(rows), noisy, trained, names, _parts(plan, draws), seeds, split, *_ending(plan, selected)
    )


def forced(plan: Any) -> Tensor:
    """Steps `(S,)` bool that are trained whatever else is selected: splits, and steps at which a fan leaves the ODE."""
    found = torch.zeros(plan.num_steps, dtype=torch.bool)
    for block in (plan.branch, plan.fan_out):
        if block is not None:
            found[list(block.at)] = True
    return found


def counts(plan: Any) -> Tensor:
    """Steps `(S,)` bool whose noise reaches what is decoded: under `decode: clean` all but the last, which is never trained."""
    found = torch.ones(plan.num_steps, dtype=torch.bool)
    found[-1] = plan.decode == "final"
    return found


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
    found[:] = True if plan.stochastic == "all" else selected.bool() | forced(plan)
    return found


def _parts(plan: Any, draws: Sequence[Draw]) -> Tensor | None:
    if plan.fan_out is None:
        return None
    return torch.tensor([draw.member % len(plan.fan_out.at) for draw in draws])


def _ending(plan: Any, selected: Tensor) -> tuple[int, int]:
    """The step after the last selected one, and the number of Flash steps from there."""
    if plan.flash is None:
        return plan.num_steps, 0
    ends = int(selected.nonzero().max()) + 1 if bool(selected.any()) else 0
    return ends, len(tail(plan.num_steps, ends, plan.flash.ratio)) - 1 if ends < plan.num_steps else 0


def shortens(plan: Any, selected: Tensor) -> bool:
    """Whether Flash takes fewer steps to the end than there are after the last selected one."""
    ends, rest = _ending(plan, selected)
    return rest < plan.num_steps - ends
