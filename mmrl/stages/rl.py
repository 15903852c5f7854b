"""The second half of an rl step: advantages, which steps are trained, and the losses of the objective."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmrl.config.resolve import ResolvedRL
from mmrl.distributed import Group
from mmrl.meter import Meter
from mmrl.objective.aggregate import Counts
from mmrl.objective.batch import UnitBatch
from mmrl.objective.measure import seen_through
from mmrl.objective.weight import noise_sums
from mmrl.parity import are_replayed, check_parity, rescore
from mmrl.policy import Policy
from mmrl.replay import kept
from mmrl.seeding import derive_seed
from mmrl.stages.collect import Collected, Collector
from mmrl.stages.engine import UNCORRECTED, compare, correct, publish
from mmrl.stages.rounds import Round
from mmrl.stages.work import Notices, Updates


class RLWork:
    """Collects the samples of a step, and learns from them."""

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
        self.kept, self.notices = folder, Notices(say)
        self.collector = Collector(stage, policy, group, seed, self.notices)
        self.objective = stage.objective
        self.num_steps = stage.objective.num_steps(policy.plan_steps(stage.plan))
        self.updates_per_step = section.updates_per_rollout * section.epochs
        self.samples_per_step = section.prompts_per_step * section.group_size
        self.replays = stage.objective.replays_old(are_replayed(section.old_log_probs, policy))
        if stage.objective.follows is not None:
            slow: Any = policy
            slow.keep_slow()
        self.token: str | None = None
        self.parity_checked = stage.objective.forward is not None
        """Samples that are noised again were not drawn by the steps that are replayed."""

    def updates(self, step: int, meter: Meter) -> Updates:
        section, objective = self.stage.section, self.objective
        meter.set({"epoch": self.collector.epoch})
        steps = self._trainable(step)
        if hasattr(self.policy, "publish"):
            with meter.time("rollout"):
                publish(self.policy, f"{self._token()}-{step + 1}", self.group)
        found = self.collector.collect(steps, step, meter)
        rounds, scored = found.rounds, found.scored
        self.samples_per_step = len(found.total)
        advantage, opposed = objective.advantages(scored), objective.opposed(scored)
        self._keep(found, advantage, step, meter)
        self.collector.learned_from(scored)
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
        parts = self._parts(keep, scored.group)
        self._rescore(rounds, parts, meter)
        self._compare(rounds, meter)
        noise = self._noise(rounds)
        for number in range(self.updates_per_step):
            inside = parts[number % len(parts)]
            size = {view: length * inside for view, length in lengths.items()}
            counts = {view: Counts(int(own.sum()), int((own > 0).sum())) for view, own in size.items()}
            signal = objective.has_signal(advantage if opposed is None else abs(advantage) - opposed, size)
            progress = step / section.steps
            yield self._losses(rounds, inside, advantage, opposed, counts, noise, progress, meter) if signal else None
            self._follow(step * self.updates_per_step + number + 1)

    def _trainable(self, step: int) -> Tensor:
        """The steps `(S,)` bool that may be trained."""
        objective = self.objective
        steps = objective.plan_steps(self.num_steps, step, derive_seed(self.seed, self.stage.name, "steps"))
        if objective.forward is None and hasattr(self.policy, "forced_steps"):
            steps = steps | self.policy.forced_steps(self.stage.plan)
        return steps

    def _keep(self, found: Collected, advantage: np.ndarray, step: int, meter: Meter) -> None:
        """Write the samples of the step for a replay, where it is their turn."""
        section, rewards = self.stage.section.keep_samples, self.collector.rewards
        if self.kept is None or section is None or not kept.due(section, step):
            return
        with meter.time("keep"):
            weights = dict(zip(rewards.names, rewards.weights, strict=True))
            rank = self.group.rank
            own = kept.chosen(section, step, found.rounds, found.table, found.total, advantage, weights, rank)
            kept.write(self.kept, own, self.group)

    def _parts(self, keep: np.ndarray, group: np.ndarray) -> list[Tensor]:
        """Which of the N samples belong to each update of a rollout, `(N,)` bool."""
        section = self.stage.section
        # with a refill only what is kept is spread over the updates: which groups are useless is known only now
        whole = keep if keep.ndim == 1 else keep.any(1)
        if self.objective.whole_groups:
            order = torch.as_tensor(np.unique(np.where(whole, group, -1), return_inverse=True)[1])
        elif section.curriculum.refill is None:
            order = torch.arange(len(keep))
        else:
            order = torch.as_tensor(whole).cumsum(0) - 1
        part_of = order % section.updates_per_rollout
        return [part_of == number for number in range(section.updates_per_rollout)]

    def _follow(self, done: int) -> None:
        """Move the slow copy of the weights where `done` updates of the stage are made and it is its turn."""
        how = self.objective.follows
        if how is not None and done % (how.every or self.updates_per_step) == 0:
            slow: Any = self.policy
            slow.follow(how.at(done))

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
            compare(rounds, self.group, meter, self.notices)
            if correction is None:
                self.notices(UNCORRECTED)
        if correction is not None:
            correct(correction, rounds, self.group, meter)

    def _token(self) -> str:
        """What tells the weights of this stage of this run from those of any other."""
        if self.token is None:
            self.token = self.group.broadcast(secrets.token_hex(4))
        return self.token

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
        return self.collector.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.collector.load_state(state)


def _advantage_stats(advantage: np.ndarray, keep: np.ndarray) -> dict[str, float]:
    used = advantage[keep]
    if not used.size:
        return {"advantage/kept": 0.0}
    return {"advantage/abs_mean": float(np.abs(used).mean()), "advantage/kept": float(keep.mean())}
