"""Old log-probs: those that ratios start from, and the start-up check that a replay gives what the sampler said.

A sampler that does not run the code of the update (one token at a time, an inference engine) rounds differently, so a ratio
to its log-probs would not be 1 before anything has changed. Such a rollout is scored again, by the replay that the update
will run, and the ratio starts at 1. Shapes: n samples of this rank, S steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from mmrl.distributed import Group
from mmrl.errors import RunError
from mmrl.objective.measure import put
from mmrl.policy import Policy
from mmrl.rollout import Chunk, Rollout

OldLogProbs = Literal["auto", "rollout", "replay"]
"""Whose they are: the sampler's, a replay's, or (auto) a replay's where the sampler is not exact."""
SAMPLES = 4
"""Samples per rank that the start-up check replays."""


def is_exact(policy: Policy) -> bool:
    """Whether the log-probs of a rollout are those of its replay but for float32 rounding: what `policy.exact_log_probs`
    says, true without it."""
    return bool(getattr(policy, "exact_log_probs", True))


def are_replayed(mode: OldLogProbs, policy: Policy) -> bool:
    """Whether every old log-prob is that of a replay."""
    return mode == "replay" or (mode == "auto" and not is_exact(policy))


@torch.no_grad()
def rescore(policy: Policy, rollout: Rollout, rows: Tensor, micro_batch: int) -> None:
    """Give the samples `rows (n,)` bool the log-probs that a replay with the original view gives them, in place."""
    drawn = rollout.mask & rows.to(rollout.mask.device)[:, None]
    for chunk in policy.chunks(rollout, drawn, micro_batch):
        put(rollout.log_prob, chunk, policy.replay(rollout, chunk).log_prob)


def check_parity(
    policy: Policy, group: Group, rollout: Rollout, train: Tensor, micro_batch: int, tolerance: float
) -> str | None:
    """Replay a few samples at their steps `train (n, S)` bool with unchanged weights, through the view they were drawn in:
    the ratio to what the sampler said must be 1. In float32 the largest |ratio - 1| may be `tolerance`; where the sampler is
    not exact the mean may, since single tokens differ by rounding.

    Returns the line to say, or None when no rank has a step to check. Raises RunError naming sample, step and rank.
    """
    worst, where, total, count = 0.0, "no step", 0.0, 0
    for chunk, off in _off(policy, rollout, train, micro_batch):
        row, column = divmod(int(off.argmax()), off.shape[1])
        if float(off[row, column]) > worst:
            worst = float(off[row, column])
            where = f"sample {int(chunk.rows[row])}, step {int(chunk.steps[row, column])} of rank {group.rank}"
        total, count = total + float(off.sum(dtype=torch.float64)), count + int(chunk.take(train).sum())
    found = group.gather((worst, where, total, count))
    steps = sum(part[3] for part in found)
    if not steps:
        return None
    worst, where = max(part[:2] for part in found)
    mean = sum(part[2] for part in found) / steps
    value, name = (worst, "max") if is_exact(policy) else (mean, "mean")
    if not value <= tolerance:
        least = "" if is_exact(policy) else f" on average, {worst:.2e} at most,"
        raise RunError(
            f"start-up parity: the replay of the first rollout gives |ratio - 1| = {value:.2e}{least} at {where}, allowed is "
            f"{tolerance:.0e} (parity_tolerance): rollout and replay do not run the same model (dtype, dropout, padding?)"
        )
    largest = "" if is_exact(policy) else f"; the largest is {worst:.1e}"
    return f"start-up parity: {name} |ratio - 1| = {value:.1e} (allowed {tolerance:.0e}){largest}"


@torch.no_grad()
def _off(policy: Policy, rollout: Rollout, train: Tensor, micro_batch: int) -> Iterator[tuple[Chunk, Tensor]]:
    """|ratio - 1| `(n, s)` on the CPU of the chunks of a few samples, 0 at steps that are not trained."""
    few = train & (train.any(1).cumsum(0) <= SAMPLES)[:, None]
    views: Sequence[str] = [draw.view for draw in rollout.draws]
    for view in dict.fromkeys(views):
        mine = few & torch.tensor([own == view for own in views], device=few.device)[:, None]
        for chunk in policy.chunks(rollout, mine, micro_batch):
            new = policy.replay(rollout, chunk, view).log_prob.float().cpu()
            off = (torch.exp(new - chunk.take(rollout.log_prob).cpu()) - 1).abs()
            yield chunk, off.masked_fill(~chunk.take(mine).cpu(), 0.0).nan_to_num(nan=float("inf"))
