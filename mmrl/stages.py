"""What one step of a stage does: supervised examples, or rollout -> rewards -> advantages -> objective.

A work yields updates; an update yields losses whose gradients are summed into one optimizer step. Losses are divided by
counts that are global over ranks and micro-batches, so that neither splitting changes a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mmrl.advantage.stats import group_stats
from mmrl.advantage.types import Scored
from mmrl.config.resolve import ResolvedRL, ResolvedSupervised
from mmrl.distributed import Group, slice_of
from mmrl.errors import RunError
from mmrl.evaluate import summarise
from mmrl.failures import FailureBudget
from mmrl.meter import Meter
from mmrl.objective.aggregate import Counts
from mmrl.objective.batch import UnitBatch
from mmrl.policy import Policy
from mmrl.reward import RewardSet
from mmrl.rollout import FAILED, SKIPPED, Rollout
from mmrl.sampler import GroupSampler
from mmrl.seeding import derive_seed

Updates = Iterator[Iterator[Tensor] | None]
"""None is an update without any signal: no optimizer step, on any rank."""

PARITY_SAMPLES = 4
"""Samples per rank that the start-up check replays."""


class Work(Protocol):
    """One stage's work; everything it remembers between steps is in `state`."""

    updates_per_step: int
    samples_per_step: int

    def updates(self, step: int, meter: Meter) -> Updates: ...

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any]) -> None: ...


class SupervisedWork:
    """Mean per-example loss over a global batch; example `i` of the stage is a pure function of `i` and the seed."""

    def __init__(self, stage: ResolvedSupervised, policy: Policy, group: Group, seed: int) -> None:
        self.stage, self.policy, self.group, self.seed = stage, policy, group, seed
        self.examples = stage.examples.open(seed)
        self.updates_per_step = 1
        self.samples_per_step = stage.section.batch_size

    def updates(self, step: int, meter: Meter) -> Updates:
        yield self._losses(step, meter)

    def _losses(self, step: int, meter: Meter) -> Iterator[Tensor]:
        size, micro = self.samples_per_step, self.stage.section.micro_batch
        indices = list(range(step * size, (step + 1) * size))[slice_of(size, self.group.rank, self.group.world)]
        for start in range(0, len(indices), micro):
            part = indices[start : start + micro]
            with meter.time("data"):
                samples = [self.examples.example(index) for index in part]
            seeds = [derive_seed(self.seed, self.stage.name, "noise", index) for index in part]
            with meter.time("update"):
                loss = self.policy.supervised_loss(samples, seeds)
                meter.add("loss", float(loss.detach().sum()), len(part))
                yield loss.sum() / size

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        pass


class RLWork:
    """Rollout, score, credit, and the chunks of the objective."""

    def __init__(self, stage: ResolvedRL, policy: Policy, group: Group, seed: int, say: Callable[[str], None]) -> None:
        section = stage.section
        self.stage, self.policy, self.group, self.seed, self.say = stage, policy, group, seed, say
        self.sampler = GroupSampler(
            stage.prompts.load(), section.prompts_per_step, section.group_size, seed, stage.name
        )
        self.draws = iter(self.sampler)
        self.rewards = RewardSet(stage.rewards)
        self.budget = FailureBudget(section.failures.share, section.failures.window)
        self.objective = stage.objective
        self.num_steps = policy.plan_steps(stage.plan)
        self.updates_per_step = section.updates_per_rollout * section.epochs
        self.samples_per_step = section.prompts_per_step * section.group_size
        self.parity_checked = False
        self.warned: set[str] = set()

    def updates(self, step: int, meter: Meter) -> Updates:
        meter.set({"epoch": self.sampler.epoch(self.draws.index)})
        draws = next(self.draws)
        mine = slice_of(len(draws), self.group.rank, self.group.world)
        steps = self.objective.plan_steps(self.num_steps, step, derive_seed(self.seed, self.stage.name, "steps"))
        with meter.time("rollout"):
            rollout = self.policy.rollout(draws[mine], self.stage.plan, steps)
        with meter.time("reward"):
            scored = self._score(rollout, meter)
        advantage = self.objective.advantages(scored)
        keep = self.objective.selected(advantage, scored)
        meter.set(_advantage_stats(advantage, keep))
        seeds = [draw.seed for draw in draws[mine]]
        train = self.objective.train_mask(rollout.mask, steps, seeds, torch.as_tensor(keep)[mine])
        if not self.parity_checked:
            self._check_parity(rollout, train)
        lengths = self.group.gather_rows(train.sum(1))
        part_of = torch.arange(len(draws)) % self.stage.section.updates_per_rollout
        for _ in range(self.stage.section.epochs):
            for part in range(self.stage.section.updates_per_rollout):
                inside = part_of == part
                size = lengths * inside
                if not self.objective.has_signal(advantage, size[:, None] > 0):
                    yield None
                    continue
                counts = Counts(int(size.sum()), int((size > 0).sum()))
                mask = train & inside[mine][:, None]
                yield self._losses(rollout, mask, torch.as_tensor(advantage)[mine], counts, meter)

    def _score(self, rollout: Rollout, meter: Meter) -> Scored:
        scores = self.rewards.score(rollout.samples)
        parts = self.group.gather((scores.values, scores.status, scores.messages, rollout.group.numpy()))
        values, status = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        group = np.concatenate([part[3] for part in parts])
        for message in (message for part in parts for message in part[2]):
            self._warn(message)
        total = self.rewards.total(scores.__class__(scores.names, values, status), group)
        self.budget.add(
            failed=int((status == FAILED).any(1).sum()),
            total=len(total),
            messages=[m for part in parts for m in part[2]],
        )
        scored = Scored(
            reward=total,
            group=group,
            components=values,
            weights=np.asarray(self.rewards.weights),
        )
        meter.set({f"reward/{key}": value for key, value in summarise(scores.names, values, status).items()})
        if np.isfinite(total).any():
            meter.set({"reward": float(np.nanmean(total)), "reward_std": float(np.nanstd(total))})
        meter.set(
            {"failed": float((status == FAILED).any(1).sum()), "skipped": float((status == SKIPPED).any(1).sum())}
        )
        stats = group_stats(total, group)
        meter.set(stats.metrics())
        if stats.singletons:
            self._warn(f"{stats.singletons} groups have one scorable sample; their advantage is 0")
        for name, value in rollout.stats.items():
            meter.add(f"rollout/{name}", value * len(rollout), len(rollout))
        return scored

    def _warn(self, message: str) -> None:
        """Say a thing once, and not more than 20 things."""
        if message not in self.warned and len(self.warned) < 20:
            self.warned.add(message)
            self.say(message)

    def _check_parity(self, rollout: Rollout, train: Tensor) -> None:
        """Replay a few samples at every trained step with unchanged weights: the ratio must be 1."""
        worst, where = 0.0, "no step"
        few = train & (train.any(1).cumsum(0) <= PARITY_SAMPLES)[:, None]
        for chunk in self.policy.chunks(rollout, few, self.stage.section.micro_batch):
            with torch.no_grad():
                new = self.policy.replay(rollout, chunk).log_prob.float().cpu()
            off = (torch.exp(new - chunk.take(rollout.log_prob)) - 1).abs()
            off = off.masked_fill(~chunk.take(few), 0.0).nan_to_num(nan=float("inf"))
            row, column = divmod(int(off.argmax()), off.shape[1])
            if float(off.max()) > worst:
                worst = float(off.max())
                where = f"sample {int(chunk.rows[row])}, step {int(chunk.steps[row, column])} of rank {self.group.rank}"
        found = self.group.gather((worst, where, bool(few.any())))
        worst, where, _ = max(found)
        tolerance = self.stage.parity_tolerance
        if worst > tolerance:
            raise RunError(
                f"start-up parity: the replay of the first rollout gives |ratio - 1| = {worst:.2e} at {where}, allowed is "
                f"{tolerance:.0e} (parity_tolerance): rollout and replay do not run the same model (dtype, dropout, padding?)"
            )
        self.parity_checked = any(checked for _, _, checked in found)
        if self.parity_checked:
            self.say(f"start-up parity: max |ratio - 1| = {worst:.1e} (allowed {tolerance:.0e})")

    def _losses(
        self, rollout: Rollout, train: Tensor, advantage: Tensor, counts: Counts, meter: Meter
    ) -> Iterator[Tensor]:
        objective, policy = self.objective, self.policy
        weight = objective.weights(train, counts)
        step_weight = objective.step_weights(train, rollout.step_std)
        for chunk in policy.chunks(rollout, train, self.stage.section.micro_batch):
            with meter.time("update"):
                others = {}
                for view, model in objective.needs:
                    with torch.no_grad():
                        others[view, model] = policy.replay(rollout, chunk, view, model)
                out = policy.replay(rollout, chunk)
                batch = UnitBatch.of(chunk, rollout.log_prob, advantage, weight, step_weight)
                loss, metrics = objective.loss(out, batch.to(out.log_prob.device), others, policy.divergence)
                meter.metrics(metrics)
                yield loss

    def state(self) -> dict[str, Any]:
        return {"sampler": self.draws.state(), "budget": self.budget.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.draws.load_state(state["sampler"])
        self.budget.load_state(state["budget"])


def _advantage_stats(advantage: np.ndarray, keep: np.ndarray) -> dict[str, float]:
    used = advantage[keep]
    if not used.size:
        return {"advantage/kept": 0.0}
    return {"advantage/abs_mean": float(np.abs(used).mean()), "advantage/kept": float(keep.mean())}
