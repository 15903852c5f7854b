"""What one step of a stage does: supervised examples, or rollout -> rewards -> advantages -> objective.

A work yields updates; an update yields losses whose gradients are summed into one optimizer step. Losses are divided by
counts that are global over ranks and micro-batches, so that neither splitting changes a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mmrl.advantage.stats import group_stats
from mmrl.advantage.types import Scored
from mmrl.config.resolve import ResolvedRL, ResolvedSupervised
from mmrl.curriculum.refill import admitted, useful
from mmrl.curriculum.rounds import Round, Table
from mmrl.distributed import Group, slice_of
from mmrl.errors import RunError
from mmrl.evaluate import summarise
from mmrl.failures import FailureBudget
from mmrl.meter import Meter
from mmrl.objective.aggregate import Counts
from mmrl.objective.batch import UnitBatch
from mmrl.objective.measure import is_per_step, measure, rescore, seen_through
from mmrl.policy import Policy
from mmrl.reward import RewardSet
from mmrl.rollout import FAILED, SKIPPED, Prompt, Rollout, Scores
from mmrl.sampler import GroupSampler
from mmrl.seeding import derive_seed

Updates = Iterator[Iterator[Tensor] | None]
"""None is an update without any signal: no optimizer step, on any rank."""

LEFT_OUT = 5
"""How many of the prompts that are left out are named."""
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
        prompts = readable(policy, stage.prompts.load(), say)
        self.sampler = GroupSampler(prompts, section.prompts_per_step, section.group_size, seed, stage.name)
        self.draws = iter(self.sampler)
        self.rewards = RewardSet(stage.rewards)
        self.budget = FailureBudget(section.failures.share, section.failures.window)
        self.objective = stage.objective
        self.num_steps = policy.plan_steps(stage.plan)
        self.updates_per_step = section.updates_per_rollout * section.epochs
        self.samples_per_step = section.prompts_per_step * section.group_size
        self.parity_checked = False
        self.scored = False
        self.warned: set[str] = set()

    def updates(self, step: int, meter: Meter) -> Updates:
        section, objective = self.stage.section, self.objective
        meter.set({"epoch": self.sampler.epoch(self.draws.index)})
        steps = objective.plan_steps(self.num_steps, step, derive_seed(self.seed, self.stage.name, "steps"))
        progress = step / section.steps
        rounds, scored = self._rounds(steps, progress, meter)
        advantage = objective.advantages(scored)
        keep = objective.selected(advantage, scored)
        meter.set(_advantage_stats(advantage, keep))
        self._choose_steps(rounds, steps, keep)
        for part in rounds:
            if not self.parity_checked:
                self._check_parity(part.rollout, part.train)
        self._correct(rounds, meter)
        lengths = self._lengths(rounds)
        # with a refill only what is kept is spread over the updates: which groups are useless is known only now
        order = torch.arange(len(keep)) if section.curriculum.refill is None else torch.as_tensor(keep).cumsum(0) - 1
        part_of = order % section.updates_per_rollout
        for _ in range(section.epochs):
            for number in range(section.updates_per_rollout):
                inside = part_of == number
                size = {view: length * inside for view, length in lengths.items()}
                if not objective.has_signal(advantage, size["original"][:, None] > 0):
                    yield None
                    continue
                counts = {view: Counts(int(own.sum()), int((own > 0).sum())) for view, own in size.items()}
                yield self._losses(rounds, inside, advantage, counts, progress, meter)

    def _rounds(self, steps: Tensor, progress: float, meter: Meter) -> tuple[list[Round], Scored]:
        """The rollouts of a step and what the advantages see of them, from rewards gathered from all ranks: every rank
        takes the same decision about another round."""
        refill, wanted = self.stage.section.curriculum.refill, self.stage.section.prompts_per_step
        rounds: list[Round] = []
        tables: list[Table] = []
        while True:
            part = self._draw(steps, progress, sum(len(one.draws) for one in rounds), meter)
            rounds.append(part)
            tables.append(self._score(part, wanted * len(tables), meter))
            table = Table.join(tables)
            scores = Scores(self.rewards.names, table.values, table.status)
            total = self.rewards.total(scores, table.group)
            scored = self.objective.shaped(table.scored(total, self.rewards.names, self.rewards.weights))
            if refill is None:
                break
            groups = len(useful(scored, refill.low, refill.high))
            if groups >= wanted or len(rounds) == refill.max_rounds:
                scored = admitted(scored, wanted, refill.low, refill.high)
                meter.set({"refill/rounds": float(len(rounds)), "refill/groups": float(min(groups, wanted))})
                break
        self._report(table, total, scored, meter)
        self.samples_per_step = len(total)
        return rounds, scored

    def _draw(self, steps: Tensor, progress: float, start: int, meter: Meter) -> Round:
        section, objective = self.stage.section, self.objective
        draws = objective.branched(next(self.draws), progress)
        mine = slice_of(len(draws), self.group.rank, self.group.world)
        with meter.time("rollout"):
            rollout = self.policy.rollout(draws[mine], self.stage.plan, steps)
            if any(draw.view != "original" for draw in draws):
                rescore(self.policy, rollout, section.micro_batch)
        for name, value in rollout.stats.items():
            meter.add(f"rollout/{name}", value * len(rollout), len(rollout))
        with meter.time("measure") if objective.measures else nullcontext():
            measured = measure(objective.measures, self.policy, rollout, steps, section.micro_batch)
        return Round(draws, mine, start, rollout, measured)

    def _score(self, part: Round, first_group: int, meter: Meter) -> Table:
        """Rewards and other numbers of the round's samples, gathered from all ranks."""
        with meter.time("reward"):
            scores = self.rewards.score(part.rollout.samples)
        extra = {name: value for name, value in part.measured.items() if not is_per_step(name)}
        table = Table.join(self.group.gather(Table.of(scores, part.rollout, extra, first_group)))
        for message in table.messages:
            self._warn(message)
        return table

    def _report(self, table: Table, total: np.ndarray, scored: Scored, meter: Meter) -> None:
        """Count failures and log what the samples of a step, useful or not, were worth."""
        values, status = table.values, table.status
        failed = (status == FAILED).any(1)
        self.budget.add(failed=int(failed.sum()), total=len(total), messages=list(table.messages))
        if failed.all() and not self.scored:
            raise RunError(f"no sample of the first step could be scored: {(*table.messages, 'no reason given')[0]}")
        self.scored = True
        found = summarise(self.rewards.names, values, status)
        meter.set({f"reward/{key}": value for key, value in found.items()})
        if np.isfinite(total).any():
            meter.set({"reward": float(np.nanmean(total)), "reward_std": float(np.nanstd(total))})
        if self.objective.shaping and np.isfinite(scored.reward).any():
            meter.set({"reward_shaped": float(np.nanmean(scored.reward))})
        meter.set(
            {"failed": float((status == FAILED).any(1).sum()), "skipped": float((status == SKIPPED).any(1).sum())}
        )
        for name, value in table.extra.items():
            if name != "length" and np.isfinite(value).any():
                meter.set({f"measured/{name}": float(np.nanmean(value))})
        stats = group_stats(total, table.group)
        meter.set(stats.metrics())
        if stats.singletons:
            self._warn(f"{stats.singletons} groups have one scorable sample; their advantage is 0")

    def _choose_steps(self, rounds: Sequence[Round], steps: Tensor, keep: np.ndarray) -> None:
        """Fill in `train` and `seen` of every round."""
        objective = self.objective
        for part in rounds:
            seeds = [draw.seed for draw in part.draws[part.mine]]
            part.train = objective.train_mask(part.rollout.mask, steps, seeds, torch.as_tensor(keep)[part.rows])
        if "entropy" in objective.select.measures:
            own = torch.cat([part.measured["entropy"][part.train.cpu()] for part in rounds])
            pool = self.group.gather_rows(own)
            for part in rounds:
                part.train = objective.refined(part.train, part.measured, pool)
        for part in rounds:
            part.seen = {view: seen_through(self.policy, part.rollout, view) for view in objective.views}

    def _lengths(self, rounds: Sequence[Round]) -> dict[str, Tensor]:
        """How many steps of each of the N samples are trained, and how many where only those count that look different
        through a view."""
        found = {}
        for view in ("original", *self.objective.views):
            own = [part.train.sum(1).cpu() * part.seen.get(view, torch.ones(len(part.train))) for part in rounds]
            found[view] = torch.cat([self.group.gather_rows(one.long()) for one in own])
        return found

    def _correct(self, rounds: Sequence[Round], meter: Meter) -> None:
        """Fill in the `factor` of every round where the objective corrects for an inference engine."""
        correction = self.objective.correction
        if correction is None:
            return
        factors, sums = [], [0.0, 0.0]
        for part in rounds:
            rollout = part.rollout
            if rollout.engine_log_prob is None:
                raise RunError(
                    "objective.correction needs the log-probs of an inference engine, and this rollout has none; "
                    "leave it out (log-probs of the trainer's own model need no correction)"
                )
            factors.append(correction.factor(rollout.log_prob, rollout.engine_log_prob, rollout.mask))
            sums = [a + b for a, b in zip(sums, correction.totals(factors[-1], rollout.mask), strict=True)]
        everywhere = [sum(column) for column in zip(*self.group.gather(tuple(sums)), strict=True)]
        mean = everywhere[0] / max(everywhere[1], 1.0)
        meter.set({"correction": mean})
        for part, factor in zip(rounds, factors, strict=True):
            rollout = part.rollout
            assert rollout.engine_log_prob is not None
            kept = correction.keep(rollout.log_prob, rollout.engine_log_prob, rollout.mask)
            meter.add("rejected", float((rollout.mask & ~kept).sum()), float(rollout.mask.sum()))
            part.factor = factor * kept / (mean if correction.normalize and mean else 1.0)

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
        self,
        rounds: Sequence[Round],
        inside: Tensor,
        advantage: np.ndarray,
        counts: Mapping[str, Counts],
        progress: float,
        meter: Meter,
    ) -> Iterator[Tensor]:
        objective, policy = self.objective, self.policy
        for part in rounds:
            rollout, train = part.rollout, part.train & inside[part.rows][:, None].to(part.train.device)
            weight = objective.weights(train, counts["original"])
            seen = {
                view: objective.weights(train & own.to(train.device)[:, None], counts[view])
                for view, own in part.seen.items()
            }
            step_weight = objective.step_weights(train, rollout.step_std)
            if part.factor is not None:
                step_weight = step_weight * part.factor
            own = objective.step_advantages(torch.as_tensor(advantage)[part.rows], part.measured)
            own = own[:, 0] if own.shape[1] == 1 else own
            for chunk in policy.chunks(rollout, train, self.stage.section.micro_batch):
                with meter.time("update"):
                    others = {}
                    for view, model in objective.needs:
                        with torch.set_grad_enabled((view, model) in objective.gradients):
                            others[view, model] = policy.replay(rollout, chunk, view, model)
                    out = policy.replay(rollout, chunk)
                    batch = UnitBatch.of(chunk, rollout.log_prob, own, weight, step_weight, seen, progress)
                    loss, metrics = objective.loss(out, batch.to(out.log_prob.device), others, policy.divergence)
                    meter.metrics(metrics)
                    yield loss

    def state(self) -> dict[str, Any]:
        return {"sampler": self.draws.state(), "budget": self.budget.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.draws.load_state(state["sampler"])
        self.budget.load_state(state["budget"])
        self.scored = True


def readable(policy: Policy, prompts: Sequence[Prompt], say: Callable[[str], None]) -> list[Prompt]:
    """The prompts that `policy` can read whole; says how many are left out, and which. Raises RunError for none left."""
    kept, left_out = policy.fits(prompts)
    if left_out:
        named = ", ".join(f"{id} ({length})" for id, length in list(left_out.items())[:LEFT_OUT])
        more = ", ..." if len(left_out) > LEFT_OUT else ""
        what = f"{len(left_out)} of {len(prompts)} prompts are too long for the policy (tokens): {named}{more}"
        if not kept:
            raise RunError(f"{what}; raise policy.max_prompt_tokens")
        say(f"left out: {what}")
    return kept


def _advantage_stats(advantage: np.ndarray, keep: np.ndarray) -> dict[str, float]:
    used = advantage[keep]
    if not used.size:
        return {"advantage/kept": 0.0}
    return {"advantage/abs_mean": float(np.abs(used).mean()), "advantage/kept": float(keep.mean())}
