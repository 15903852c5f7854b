"""Numbers of a rollout that need replays without gradient, made before the advantages.

Names: `entropy`, the entropy of each step `(n, S)` in nats, from the rollout where it knows it; `uncertainty/VIEW`, how
much VIEW changes what the policy says, `(n,)` in nats, of the samples drawn through VIEW and 0 for the others. Any other
name is asked from the policy: `policy.measure(name, rollout, micro_batch)` gives `(n,)` numbers; it lists them in `policy.offers`.
Shapes: n samples of this rank, S steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import RunError
from mmrl.objective.sequence import row_mean
from mmrl.policy import Policy
from mmrl.rollout import Chunk, Rollout

OWN = ("entropy", "uncertainty")
"""Measured here, for every policy that can be replayed."""


def kind_of(name: str) -> str:
    """`uncertainty/noisy` -> `uncertainty`."""
    return name.partition("/")[0]


def is_per_step(name: str) -> bool:
    """Whether a number belongs to each step, not to each sample."""
    return name == "entropy"


def replays(name: str) -> int:
    """How often a sample that a number is about is replayed for it, at most."""
    return 2 if kind_of(name) == "uncertainty" else 1


@torch.no_grad()
def measure(
    names: Iterable[str], policy: Policy, rollout: Rollout, planned: Tensor, micro_batch: int
) -> dict[str, Tensor]:
    """Every number of `names`, float32 on the CPU; 0 at steps that were not drawn or are not `planned (P,)`, P >= S."""
    mask = rollout.mask & planned[: rollout.mask.shape[1]].to(rollout.mask.device)
    found: dict[str, Tensor] = {}
    for name in names:
        if name == "entropy":
            known = rollout.entropy
            found[name] = (
                _entropy(policy, rollout, mask, micro_batch) if known is None else known.masked_fill(~mask, 0.0)
            )
        elif kind_of(name) == "uncertainty":
            found[name] = uncertainty(policy, rollout, mask, name.partition("/")[2], micro_batch)
        else:
            asked: Any = policy
            found[name] = asked.measure(name, rollout, micro_batch).float().cpu()
    return found


def uncertainty(policy: Policy, rollout: Rollout, mask: Tensor, view: str, micro_batch: int) -> Tensor:
    """`(KL(original || view) + KL(view || original)) / 2` over all that could have been drawn, averaged over the steps
    `mask (n, S)` of each sample, `(n,)` float32; 0 for samples that were not drawn through `view`. Source: VOGUE."""
    mine = torch.tensor([draw.view == view for draw in rollout.draws]) & seen_through(policy, rollout, view)
    rows = mask & mine.to(mask.device)[:, None]
    found = torch.zeros(mask.shape)
    for chunk in policy.chunks(rollout, rows, micro_batch):
        raw, noisy = policy.replay(rollout, chunk), policy.replay(rollout, chunk, view)
        both = (policy.divergence(raw, noisy, "s2") + policy.divergence(noisy, raw, "s2")) / 2
        put(found, chunk, both)
    return row_mean(found, rows.cpu())[:, 0]


def seen_through(policy: Policy, rollout: Rollout, view: str) -> Tensor:
    """Samples `(n,)` bool that look different through `view`: what `policy.has_view` says, all without such a method."""
    asked = getattr(policy, "has_view", None)
    n = len(rollout)
    if asked is None or not n:
        return torch.ones(n, dtype=torch.bool)
    every = Chunk(torch.arange(n), torch.zeros(n, 1, dtype=torch.int64))
    return asked(rollout, every, view).bool().cpu()


def _entropy(policy: Policy, rollout: Rollout, mask: Tensor, micro_batch: int) -> Tensor:
    found = torch.zeros(mask.shape)
    for chunk in policy.chunks(rollout, mask, micro_batch):
        entropy = policy.replay(rollout, chunk).entropy
        if entropy is None:
            raise RunError("the entropy of each step is needed, and this policy's replay gives none")
        put(found, chunk, entropy)
    return found.masked_fill(~mask.cpu(), 0.0)


def put(target: Tensor, chunk: Chunk, values: Tensor) -> None:
    """Write a chunk's entries `values (n, s)` into `target (N, S)`."""
    rows, steps = chunk.rows.to(target.device), chunk.steps.to(target.device)
    target[rows[:, None], steps] = values.to(target)
