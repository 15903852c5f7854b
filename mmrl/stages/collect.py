"""The first half of an rl step: draw, score, and what the advantages see of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmrl.advantage.history import History
from mmrl.advantage.types import Scored
from mmrl.config.resolve import ResolvedRL
from mmrl.curriculum.checklist import Checklist
from mmrl.curriculum.refill import admitted, useful
from mmrl.distributed import Group, slice_of, slice_of_groups
from mmrl.errors import RunError
from mmrl.failures import FailureBudget, cause
from mmrl.meter import Meter
from mmrl.objective.measure import is_per_step, measure
from mmrl.policy import Policy
from mmrl.reward import RewardSet, graded
from mmrl.reward.beside import Scorer, Scoring, in_parts
from mmrl.rollout import Draw, Prompt, Rollout, Scores
from mmrl.sampler import GroupSampler
from mmrl.stages.rounds import Round, Table
from mmrl.stages.tally import Tally
from mmrl.stages.work import Notices, readable


@dataclass(frozen=True)
class Collected:
    """The samples of a step, N on all ranks: the rollouts of this rank, what was found out about all of them, their reward `total (N,)`
    (NaN without one), and what the advantages see."""

    rounds: Sequence[Round]
    table: Table
    total: np.ndarray
    scored: Scored


class Collector:
    """Draws the groups of a step and scores them, in parts and rounds; every rank takes the same decisions."""

    def __init__(self, stage: ResolvedRL, policy: Policy, group: Group, seed: int, notices: Notices) -> None:
        section = stage.section
        self.stage, self.policy, self.group, self.notices = stage, policy, group, notices
        self.objective = stage.objective
        prompts = readable(policy, stage.prompts.load(), notices.say)
        asked = section.curriculum.checklist
        checklist = None if asked is None else Checklist(asked.questions, asked.group_size, self._readable)
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
        self.drawn_steps = policy.plan_steps(stage.plan)
        keep = stage.objective.advantage.remembers
        self.history = None if keep is None else History(keep=keep)
        budget = FailureBudget(section.failures.share, section.failures.window)
        self.tally = Tally(self.rewards, budget, notices, lone=keep is None)

    def _readable(self, questions: Sequence[Prompt]) -> list[Prompt]:
        """The sub-questions that the policy can read whole."""
        kept, left_out = self.policy.fits(questions)
        for id, length in left_out.items():
            self.notices(f"left out: sub-question '{id}' is too long for the policy ({length} tokens)", "sub-questions")
        return kept

    @property
    def epoch(self) -> float:
        """Passes over the prompts so far."""
        return self.sampler.epoch(self.draws.index)

    def collect(self, steps: Tensor, step: int, meter: Meter) -> Collected:
        """The samples of `step`; `steps (S,)` bool may be trained. What goes wrong stops the rewards that are at work beside."""
        try:
            return self._rounds(steps, step, meter)
        except BaseException:  # what is being scored beside would keep the process alive
            self.scorer.give_up()
            for reward in self.rewards.rewards:
                reward.stop()
            raise

    def learned_from(self, scored: Scored) -> None:
        """Remember the rewards of the prompts, where the advantages ask for it."""
        if self.history is not None:
            self.history.add(scored)

    def _rounds(self, steps: Tensor, step: int, meter: Meter) -> Collected:
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
            raw = table.scored(self.rewards)
            total = raw.reward
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
        self.tally.add(table, total, meter)
        if self.objective.shaping and np.isfinite(scored.reward).any():
            meter.set({"reward_shaped": float(np.nanmean(scored.reward))})
        meter.set(
            {f"reward/{key}": value for key, value in self.rewards.transform_metrics(scores, table.group).items()}
        )
        self.rewards.remember(scores, table.group)
        meter.set(self.objective.metrics(raw))
        return Collected(rounds, table, total, scored)

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
            self.notices(message, cause(message))
        return table

    def state(self) -> dict[str, Any]:
        found = {"sampler": self.draws.state(), "budget": self.tally.budget.state(), "rewards": self.rewards.state()}
        return found if self.history is None else {**found, "history": self.history.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        if self.history is not None:
            self.history = History.from_state(state["history"], self.history.keep)
        self.draws.load_state(state["sampler"])
        self.tally.budget.load_state(state["budget"])
        self.tally.scored = True
        self.rewards.load_state(state["rewards"])
