"""What one step of a stage does: supervised examples, or rollout -> rewards -> advantages -> objective.

A work yields updates; an update yields losses whose gradients are summed into one optimizer step. Losses are divided by
counts that are global over ranks and micro-batches, so that neither splitting changes a gradient.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mmrl.advantage.history import History
from mmrl.advantage.stats import group_stats
from mmrl.advantage.types import Scored
from mmrl.alarms import Alarms
from mmrl.config.resolve import ResolvedRL, ResolvedSupervised
from mmrl.curriculum.checklist import Checklist
from mmrl.curriculum.refill import admitted, useful
from mmrl.curriculum.rounds import Round, Table
from mmrl.distributed import Group, slice_of, slice_of_groups
from mmrl.engine import UNCORRECTED, compare, correct, publish
from mmrl.errors import RunError
from mmrl.evaluate import summarise
from mmrl.failures import FailureBudget, cause
from mmrl.meter import Meter
from mmrl.objective.aggregate import Counts
from mmrl.objective.batch import UnitBatch
from mmrl.objective.measure import is_per_step, measure, seen_through
from mmrl.objective.weight import noise_sums
from mmrl.parity import are_replayed, check_parity, rescore
from mmrl.policy import Policy
from mmrl.replay import kept
from mmrl.reward import RewardSet, graded
from mmrl.reward.beside import Scorer, Scoring, in_parts
from mmrl.rollout import FAILED, SKIPPED, Draw, Prompt, Rollout, Scores
from mmrl.sampler import GroupSampler
from mmrl.seeding import derive_seed

Updates = Iterator[Iterator[Tensor] | None]
"""None is an update without any signal: no optimizer step, on any rank."""

LEFT_OUT = 5
"""How many of the prompts that are left out are named."""


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

    def __init__(
        self,
        stage: ResolvedRL,
        policy: Policy,
        group: Group,
        seed: int,
        say: Callable[[str], None],
        folder: Path | None = None,
    ) -> None:
        """`folder` is that of the stage's kept samples; None: none are kept."""
        section = stage.section
        self.stage, self.policy, self.group, self.seed, self.say = stage, policy, group, seed, say
        self.kept = folder
        prompts = readable(policy, stage.prompts.load(), say)
        asked = section.curriculum.checklist
        checklist = None if asked is None else Checklist(asked.questions, asked.group_size)
        self.sampler = GroupSampler(prompts, section.prompts_per_step, section.group_size, seed, stage.name, checklist)
        self.draws = iter(self.sampler)
        self.rewards = RewardSet(stage.rewards)
        self.scorer = Scorer(
            self.rewards.score, beside=section.rollout_parts > 1, device=getattr(group, "device", None)
        )
        if self.rewards.reads_groups and section.prompts_per_step // section.rollout_parts < group.world:
            raise RunError(
                f"stage {stage.name}: a reward compares the samples of a group, so every process needs a whole one, but there are "
                f"{section.prompts_per_step} per step in {section.rollout_parts} parts and {group.world} processes; raise "
                "prompts_per_step or lower rollout_parts"
            )
        self.budget = FailureBudget(section.failures.share, section.failures.window)
        self.alarms = Alarms(self.rewards.names, self.rewards.weights)
        self.objective = stage.objective
        self.drawn_steps = policy.plan_steps(stage.plan)
        self.num_steps = stage.objective.num_steps(self.drawn_steps)
        self.updates_per_step = section.updates_per_rollout * section.epochs
        self.samples_per_step = section.prompts_per_step * section.group_size
        self.replays = stage.objective.replays_old(are_replayed(section.old_log_probs, policy))
        keep = stage.objective.advantage.remembers
        self.history = None if keep is None else History(keep=keep)
        if stage.objective.follows is not None:
            slow: Any = policy
            slow.keep_slow()
        self.token: str | None = None
        self.parity_checked = stage.objective.forward is not None
        """Samples that are noised again were not drawn by the steps that are replayed."""
        self.scored = False
        self.warned: set[str] = set()

    def updates(self, step: int, meter: Meter) -> Updates:
        section, objective = self.stage.section, self.objective
        meter.set({"epoch": self.sampler.epoch(self.draws.index)})
        steps = objective.plan_steps(self.num_steps, step, derive_seed(self.seed, self.stage.name, "steps"))
        if objective.forward is None and hasattr(self.policy, "forced_steps"):
            steps = steps | self.policy.forced_steps(self.stage.plan)
        progress = step / section.steps
        if hasattr(self.policy, "publish"):
            with meter.time("rollout"):
                publish(self.policy, f"{self._token()}-{step + 1}", self.group)
        try:
            rounds, scored, table, total = self._rounds(steps, step, meter)
        except BaseException:  # what is being scored beside would keep the process alive
            self.scorer.give_up()
            for reward in self.rewards.rewards:
                reward.stop()
            raise
        advantage, opposed = objective.advantages(scored), objective.opposed(scored)
        if self.kept is not None and section.keep_samples is not None and kept.due(section.keep_samples, step):
            with meter.time("keep"):
                weights = dict(zip(self.rewards.names, self.rewards.weights, strict=True))
                own = kept.chosen(section.keep_samples, step, rounds, table, total, advantage, weights, self.group.rank)
                kept.write(self.kept, own, self.group)
        if self.history is not None:
            self.history.add(scored)
        keep = objective.selected(advantage, scored, step)
        meter.set(_advantage_stats(advantage, keep))
        self._choose_steps(rounds, steps, keep)
        for part in rounds:
            if not self.parity_checked:
                self._check_parity(part)
        lengths = self._lengths(rounds)
        edges = objective.edges(scored)
        if edges is not None:
            meter.set({"tree/edges": float(edges.sum()), "tree/trained": float(lengths["original"].sum())})
        # with a refill only what is kept is spread over the updates: which groups are useless is known only now
        whole = keep if keep.ndim == 1 else keep.any(1)
        if objective.whole_groups:
            order = torch.as_tensor(np.unique(np.where(whole, scored.group, -1), return_inverse=True)[1])
        elif section.curriculum.refill is None:
            order = torch.arange(len(keep))
        else:
            order = torch.as_tensor(whole).cumsum(0) - 1
        part_of = order % section.updates_per_rollout
        parts = [part_of == number for number in range(section.updates_per_rollout)]
        self._rescore(rounds, parts, meter)
        self._compare(rounds, meter)
        noise = self._noise(rounds)
        for number in range(self.updates_per_step):
            inside = parts[number % len(parts)]
            size = {view: length * inside for view, length in lengths.items()}
            counts = {view: Counts(int(own.sum()), int((own > 0).sum())) for view, own in size.items()}
            signal = objective.has_signal(advantage if opposed is None else abs(advantage) - opposed, size)
            yield self._losses(rounds, inside, advantage, opposed, counts, noise, progress, meter) if signal else None
            self._follow(step * self.updates_per_step + number + 1)

    def _follow(self, done: int) -> None:
        """Move the slow copy of the weights where `done` updates of the stage are made and it is its turn."""
        how = self.objective.follows
        if how is not None and done % (how.every or self.updates_per_step) == 0:
            slow: Any = self.policy
            slow.follow(how.at(done))

    def _rounds(self, steps: Tensor, step: int, meter: Meter) -> tuple[list[Round], Scored, Table, np.ndarray]:
        """The rollouts of a step and what the advantages see of them, from rewards gathered from all ranks (the table, and the total
        `(N,)`): every rank takes the same decision about another round."""
        refill, wanted = self.stage.section.curriculum.refill, self.stage.section.prompts_per_step
        rounds: list[Round] = []
        tables: list[Table] = []
        number = 0
        while True:
            parts = self._round(steps, step, sum(len(one.draws) for one in rounds), meter)
            rounds += [part for part, _ in parts]
            tables += [self._score(part, job, self.sampler.groups * number, meter) for part, job in parts]
            number += 1
            table = Table.join(tables)
            scores = Scores(self.rewards.names, table.values, table.status)
            total = self.rewards.total(scores, table.group)
            raw = table.scored(
                total, self.rewards.names, self.rewards.weights, self.rewards.composed(scores, table.group)[0]
            )
            if self.history is not None:
                raw = self.history.known(raw)
            scored = self.objective.shaped(raw)
            if refill is None:
                break
            groups = len(useful(scored, refill.low, refill.high))
            if groups >= wanted or number == refill.max_rounds:
                scored = admitted(scored, wanted, refill.low, refill.high)
                meter.set({"refill/rounds": float(number), "refill/groups": float(min(groups, wanted))})
                break
        self._report(table, total, scored, meter)
        meter.set(
            {f"reward/{key}": value for key, value in self.rewards.transform_metrics(scores, table.group).items()}
        )
        self.rewards.remember(scores, table.group)
        meter.set(self.objective.metrics(raw))
        self.samples_per_step = len(total)
        return rounds, scored, table, total

    def _round(self, steps: Tensor, step: int, start: int, meter: Meter) -> list[tuple[Round, Scoring]]:
        """The parts of one round, the first sample of which is number `start` of the step; each is scored while the next is drawn."""
        draws = self.objective.branched(next(self.draws), step / self.stage.section.steps)
        found = []
        for own in in_parts(draws, self.stage.section.rollout_parts):
            part = self._draw(own, steps, start, meter)
            scores = self.scorer.begin(part.rollout.samples, part.rollout.group.tolist())
            part.measured = self._measure(part, steps, step, meter)
            found.append((part, scores))
            start += len(own)
        return found

    def _draw(self, draws: Sequence[Draw], steps: Tensor, start: int, meter: Meter) -> Round:
        if self.rewards.reads_groups:
            mine = slice_of_groups([draw.group for draw in draws], self.group.rank, self.group.world)
        else:
            mine = slice_of(len(draws), self.group.rank, self.group.world)
        with meter.time("rollout"):
            rollout = self._rollout(draws[mine], steps)
        for name, value in rollout.stats.items():
            meter.add(f"rollout/{name}", value * len(rollout), len(rollout))
        return Round(draws, mine, start, rollout)

    def _measure(self, part: Round, steps: Tensor, step: int, meter: Meter) -> Mapping[str, Tensor]:
        names = self.objective.measures(step)
        with meter.time("measure") if names else nullcontext():
            return measure(names, self.policy, part.rollout, steps, self.stage.section.micro_batch)

    def _rollout(self, draws: Sequence[Draw], steps: Tensor) -> Rollout:
        """By the model that the surrogate learns from; as the surrogate sees it. `steps (S,)` bool are those of the loss."""
        policy: Any = self.policy
        surrogate, forward = self.objective.surrogate, self.objective.forward
        with policy.as_slow() if surrogate.drawn_by == "ema" else nullcontext():
            if forward is None:
                kept = {"keep_means": True} if surrogate.reads_transition else {}
                return policy.rollout(draws, self.stage.plan, steps, **kept)
            none = torch.zeros(self.drawn_steps, dtype=torch.bool)
            return policy.renoised(self.policy.rollout(draws, self.stage.plan, none), forward)

    def _score(self, part: Round, scoring: Scoring, first_group: int, meter: Meter) -> Table:
        """Rewards and other numbers of a part's samples, gathered from all ranks."""
        with meter.time("reward_wait") if self.scorer.beside else nullcontext():
            scores, seconds = scoring.result()
        meter.spent("reward", seconds)
        for name, words in graded(part.rollout.samples).items():
            meter.metrics({f"reward/{name}/how={word}": ("sum", float(number)) for word, number in words.items()})
        for sample in part.rollout.samples:
            for name, parts in sample.meta.get("components", {}).items():
                meter.metrics({f"reward/{name}/{key}": (float(value), 1.0) for key, value in parts.items()})
        extra = {name: value for name, value in part.measured.items() if not is_per_step(name)}
        table = Table.join(self.group.gather(Table.of(scores, part.rollout, extra, first_group)))
        for message in table.messages:
            self._warn(message, cause(message))
        return table

    def _report(self, table: Table, total: np.ndarray, scored: Scored, meter: Meter) -> None:
        """Count failures and log what the samples of a step, useful or not, were worth."""
        values, status = table.values, table.status
        failed = (status == FAILED).any(1)
        for name, broken in zip(self.rewards.names, (status == FAILED).sum(0) * self.rewards.strict, strict=True):
            if broken:
                own = [message for message in table.messages if message.startswith(f"reward '{name}'")]
                raise RunError(
                    f"reward '{name}' failed on {broken} samples, and it ends the run at the first failure (on_failure: raise): "
                    f"{(*own, 'no reason given')[0]}"
                )
        if not np.isfinite(total).any() and not self.scored:
            counts = [
                f"{name}: {(own == FAILED).sum()} failed, {(own == SKIPPED).sum()} skipped"
                for name, own in zip(self.rewards.names, status.T, strict=True)
            ]
            raise RunError(
                f"no sample of the first step could be scored ({'; '.join(counts)}): "
                f"{(*table.messages, 'the rewards do not apply to these samples')[0]}"
            )
        self.budget.add(failed=int(failed.sum()), total=len(total), messages=list(table.messages))
        self.scored = True
        for name, reward in zip(self.rewards.names, self.rewards.rewards, strict=True):
            meter.beside |= {f"reward/{name}/{key}": value for key, value in reward.stats().items()}
        for line in self.alarms.add(values):
            self._warn(line)
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
        if stats.singletons and self.history is None:
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

    def _noise(self, rounds: Sequence[Round]) -> Tensor | None:
        """How much noise the trained steps have, over the samples of all ranks, where the step weights ask for it."""
        if not self.objective.weight.needs_std:
            return None
        own = [
            noise_sums(part.train.cpu(), part.rollout.step_std.cpu())
            for part in rounds
            if part.rollout.step_std is not None
        ]
        return torch.stack(self.group.gather(torch.stack(own).sum(0))).sum(0) if own else None

    def _compare(self, rounds: Sequence[Round], meter: Meter) -> None:
        """Compare and correct for an inference engine that drew the rollouts."""
        correction, drawn_by_engine = self.objective.correction, rounds[0].rollout.engine_log_prob is not None
        if drawn_by_engine and self.stage.section.old_log_probs != "rollout":
            compare(rounds, self.group, meter, self._warn)
            if correction is None:
                self._warn(UNCORRECTED)
        if correction is not None:
            correct(correction, rounds, self.group, meter)

    def _token(self) -> str:
        """What tells the weights of this stage of this run from those of any other."""
        if self.token is None:
            self.token = self.group.broadcast(secrets.token_hex(4))
        return self.token

    def _warn(self, message: str, about: str = "") -> None:
        """Say a thing once, or one message `about` a thing, and not more than 20 things."""
        key = about or message
        if key not in self.warned and len(self.warned) < 20:
            self.warned.add(key)
            self.say(message)

    def _check_parity(self, part: Round) -> None:
        stage, policy, micro_batch = self.stage, self.policy, self.stage.section.micro_batch
        line = check_parity(policy, self.group, part.rollout, part.train, micro_batch, stage.parity_tolerance)
        if line is not None:
            self.parity_checked = True
            self.say(line)

    def _rescore(self, rounds: Sequence[Round], parts: Sequence[Tensor], meter: Meter) -> None:
        """Replay the old log-probs of trained samples where those of the rollout are not those of the update's code and view.
        Samples are cut into `parts (N,)` as the updates cut them, so that both run alike to the last bit."""
        again = [
            torch.tensor([self.replays or draw.view != "original" for draw in one.rollout.draws], dtype=torch.bool)
            for one in rounds
        ]
        with meter.time("measure") if any(rows.any() for rows in again) else nullcontext():
            for one, rows in zip(rounds, again, strict=True):
                for inside in parts:
                    wanted = rows & one.train.any(1).cpu() & inside[one.rows]
                    rescore(self.policy, one.rollout, wanted, self.stage.section.micro_batch)

    def _losses(
        self,
        rounds: Sequence[Round],
        inside: Tensor,
        advantage: np.ndarray,
        opposed: np.ndarray | None,
        counts: Mapping[str, Counts],
        noise: Tensor | None,
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
            step_weight = objective.step_weights(train, rollout.step_std, noise)
            if part.factor is not None:
                step_weight = step_weight * part.factor
            own = objective.step_advantages(torch.as_tensor(advantage)[part.rows], part.measured)
            own = own[:, 0] if own.shape[1] == 1 else own
            against = None if opposed is None else torch.as_tensor(opposed)[part.rows]
            if against is not None:
                own = own - against
            for chunk in policy.chunks(rollout, train, self.stage.section.micro_batch):
                with meter.time("update"):
                    others = {}
                    for view, model in objective.needs:
                        with torch.set_grad_enabled((view, model) in objective.gradients):
                            others[view, model] = policy.replay(rollout, chunk, view, model)
                    out = policy.replay(rollout, chunk)
                    batch = UnitBatch.of(
                        chunk, rollout.log_prob, own, weight, step_weight, seen, progress, part.measured, against
                    )
                    loss, metrics = objective.loss(out, batch.to(out.log_prob.device), others, policy.divergence)
                    meter.metrics(metrics)
                    yield loss

    def state(self) -> dict[str, Any]:
        found = {"sampler": self.draws.state(), "budget": self.budget.state(), "rewards": self.rewards.state()}
        return found if self.history is None else {**found, "history": self.history.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        if self.history is not None:
            self.history = History.from_state(state["history"], self.history.keep)
        self.draws.load_state(state["sampler"])
        self.budget.load_state(state["budget"])
        self.rewards.load_state(state["rewards"])
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
