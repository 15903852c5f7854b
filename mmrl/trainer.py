"""The training loop: stages one after another, each step logged, evaluated, checkpointed and resumable."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from mmrl import checkpoint
from mmrl.config.resolved import (
    Resolved,
    ResolvedDirect,
    ResolvedDraws,
    ResolvedPreference,
    ResolvedRL,
    ResolvedStage,
    ResolvedSupervised,
)
from mmrl.distributed import Group
from mmrl.errors import RunError, UserError
from mmrl.evaluate import Evaluation, chance, evaluate, evaluation_draws
from mmrl.folder import RunFolder, write_json
from mmrl.meter import Meter
from mmrl.optim import Optimization
from mmrl.policy import Policy
from mmrl.replay import kept
from mmrl.report.shots import save_pictures
from mmrl.reward import RewardSet, Use
from mmrl.rollout import Prompt
from mmrl.seeding import derive_seed
from mmrl.stages.direct import DirectWork
from mmrl.stages.preference import PreferenceWork
from mmrl.stages.rl import RLWork
from mmrl.stages.supervised import SupervisedWork
from mmrl.stages.work import Work, readable
from mmrl.tracking import Tracking


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and did."""


@dataclass
class TrainState:
    """Where a run is. `step` counts the done steps of the current stage, `total` those of the run. Randomness needs no
    state: every draw is a function of (seed, stage, step, ...)."""

    stage: int = 0
    step: int = 0
    total: int = 0
    metric_lines: int = 0
    seconds: float = 0.0
    """Of the current stage, evaluation and checkpoints included."""
    training_seconds: float = 0.0
    """Of the current stage, in its steps alone."""
    samples: int = 0
    failed: int = 0
    failed_held_out: int = 0
    skipped: int = 0
    skipped_updates: int = 0
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    stages_done: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """Runs a resolved config into a folder."""

    def __init__(self, resolved: Resolved, policy: Policy, folder: RunFolder, group: Group, tracking: Tracking) -> None:
        self.resolved, self.policy, self.folder, self.group, self.tracking = resolved, policy, folder, group, tracking
        self.config = resolved.config
        self.seed = self.config.run.seed
        self.state = TrainState()
        self.restored: tuple[dict[str, Any], dict[str, Any]] | None = None
        self.stop = False
        self.held_out: list[Prompt] | None = None
        self.chances: dict[str, dict[str, float]] = {}
        self._check_stages()

    def _check_stages(self) -> None:
        """Everything that a later stage could fail on, before the first one starts."""
        for stage in self.resolved.stages:
            self.policy.check_loaded(stage.train, stage.plan if isinstance(stage, ResolvedDraws) else None)
            if isinstance(stage, ResolvedRL):
                samples = stage.section.prompts_per_step // stage.section.rollout_parts * stage.section.group_size
                if samples < self.group.world:
                    raise RunError(
                        f"stage {stage.name}: {samples} samples per part of a step cannot feed {self.group.world} processes; "
                        "raise prompts_per_step or group_size, lower rollout_parts, or start fewer processes"
                    )
                parts = stage.section.rollout_parts
                if stage.objective.whole_groups and stage.section.prompts_per_step % (self.group.world * parts):
                    raise RunError(
                        f"stage {stage.name}: the surrogate needs whole groups, and {stage.section.prompts_per_step} groups do "
                        f"not divide into {parts} parts for {self.group.world} processes; change prompts_per_step, rollout_parts or "
                        "the number of processes"
                    )
        if self.resolved.evaluation is not None:
            self.policy.check_loaded(None, self.resolved.evaluation.plan)

    def resume(self) -> bool:
        """Take up the newest complete checkpoint; False when there is none yet."""
        newest = self.group.broadcast(next(reversed(checkpoint.complete(self.folder.checkpoints)), None))
        if newest is not None:
            tensors, saved = checkpoint.load(newest)
            self.state = TrainState(**saved["train"])
            self.restored = (tensors, saved)
            self.tracking.say(f"resumed from {newest} (step {self.state.total})")
        problem: UserError | None = None
        if self.group.main:
            try:
                self.folder.keep_metrics(self.state.metric_lines)
            except UserError as error:
                problem = error
        self.group.raise_together(problem)
        return newest is not None

    def run(self) -> dict[str, Any]:
        """Train every remaining stage. Returns the summary that is also written to summary.json."""
        with self._stop_on_signal():
            while self.state.stage < len(self.resolved.stages):
                self._run_stage(self.resolved.stages[self.state.stage])
        summary = self._summary()
        if self.group.main:
            write_json(self.folder.summary, summary)
        return summary

    def _run_stage(self, stage: ResolvedStage) -> None:
        state, policy = self.state, self.policy
        began = time.perf_counter() - state.seconds
        policy.prepare(stage.train, _needs_reference(stage))
        work = self._work(stage)
        optimization = Optimization(
            policy.trainable(),
            stage.section.optimizer,
            stage.section.ema,
            stage.section.steps * work.updates_per_step,
            self.group,
        )
        if self.restored is not None:
            self._restore(work, optimization)
        elif isinstance(stage, ResolvedDraws):
            self._evaluate(stage, optimization, "before")
        with self.tracking.stage(stage.name, stage.section.steps, state.step):
            while state.step < stage.section.steps:
                self._step(stage, work, optimization)
                state.seconds = time.perf_counter() - began
                due = state.step % self.config.checkpoint.every == 0 or state.step == stage.section.steps
                stop = self.group.any(self.stop)
                if due or stop:
                    self._checkpoint(work, optimization)
                if stop:
                    raise Interrupted(f"stopped after step {state.total}")
        optimization.hand_on()
        last = state.stage + 1 == len(self.resolved.stages)
        if isinstance(stage, ResolvedDraws) or last:
            self._evaluate(stage, optimization, "after", averaged=False)
        state.seconds = time.perf_counter() - began
        rate = state.samples / state.training_seconds if state.training_seconds else 0.0
        state.stages_done.append(
            {"stage": stage.name, "kind": stage.section.kind, "steps": state.step, "seconds": state.seconds,
             "training_seconds": state.training_seconds, "samples": state.samples, "samples_per_second": rate}
        )  # fmt: skip
        state.stage, state.step, state.samples, state.seconds, state.training_seconds = state.stage + 1, 0, 0, 0.0, 0.0

    def _work(self, stage: ResolvedStage) -> Work:
        if isinstance(stage, ResolvedRL):
            folder = self.folder.path / kept.FOLDER / stage.name
            return RLWork(stage, self.policy, self.group, self.seed, self.tracking.say, folder)
        if isinstance(stage, ResolvedDirect):
            return DirectWork(stage, self.policy, self.group, self.seed, self.tracking.say)
        if isinstance(stage, ResolvedPreference):
            return PreferenceWork(stage, self.policy, self.group, self.seed)
        assert isinstance(stage, ResolvedSupervised)
        return SupervisedWork(stage, self.policy, self.group, self.seed)

    def _step(self, stage: ResolvedStage, work: Work, optimization: Optimization) -> None:
        state = self.state
        torch.manual_seed(derive_seed(self.seed, stage.name, state.step, self.group.rank))
        meter = Meter()
        applied = 0
        for update in work.updates(state.step, meter):
            if update is None:
                optimization.pass_over()
                continue
            result = optimization.apply(update)
            state.skipped_updates += int(result.pop("skipped"))
            meter.set(result)
            applied += 1
        state.step, state.total, state.samples = state.step + 1, state.total + 1, state.samples + work.samples_per_step
        record = meter.reduce(self.group)
        if "loss" in record and applied and isinstance(stage, ResolvedRL):
            record["loss"] /= applied
        state.failed += int(record.get("failed", 0))
        state.skipped += int(record.get("skipped", 0))
        clock = meter.clock(work.samples_per_step, self.group.device)
        state.training_seconds += clock["seconds"]
        evaluation = self.config.evaluation
        if isinstance(stage, ResolvedDraws) and evaluation is not None and state.step < stage.section.steps:
            if evaluation.every is not None and state.step % evaluation.every == 0:
                self._evaluate(stage, optimization, "during", record)
            elif evaluation.pictures_every is not None and state.step % evaluation.pictures_every == 0:
                self._draw_pictures(stage, optimization)
        self._log(stage, record, clock)

    def _log(self, stage: ResolvedStage, record: dict[str, float], clock: dict[str, float]) -> None:
        line = {"stage": stage.name, "step": self.state.step, "total": self.state.total, **record, "time": clock}
        self.state.metric_lines += 1
        self.tracking.step(line)

    def _evaluate(
        self, stage: ResolvedStage, optimization: Optimization, when: str,
        record: dict[str, float] | None = None, averaged: bool = True,
    ) -> None:  # fmt: skip
        """Evaluate on held-out prompts; the numbers go into `record`, or into a line of their own."""
        settings, resolved = self.config.evaluation, self.resolved.evaluation
        if settings is None or resolved is None:
            return
        began = time.perf_counter()
        draws = evaluation_draws(self._held_out(), settings.samples_per_prompt, settings.seed)
        result = self._with_weights(optimization, averaged, stage, draws, blind=True)
        result.metrics |= self._chance(stage)
        metrics = {f"eval/{key}": value for key, value in result.metrics.items()}
        entry = {
            "stage": stage.name,
            "when": when,
            "step": self.state.step,
            "total": self.state.total,
            **result.metrics,
        }
        self.state.evaluations.append({**entry, "samples": len(draws)})
        self._save_pictures(result, stage, when)
        self.tracking.evaluated(when, {key: value for key, value in result.metrics.items() if "=" not in key})
        for message in result.messages:
            self.tracking.say(message)
        self.state.failed_held_out += result.failed
        if record is not None:
            record.update(metrics)
        else:
            self._log(stage, metrics, {"seconds/evaluate": time.perf_counter() - began})

    def _draw_pictures(self, stage: ResolvedStage, optimization: Optimization) -> None:
        settings, resolved = self.config.evaluation, self.resolved.evaluation
        assert settings is not None and resolved is not None
        draws = evaluation_draws(self._held_out()[: settings.pictures], 1, settings.seed)
        self._save_pictures(self._with_weights(optimization, True, stage, draws, blind=False), stage, "during")

    def _held_out(self) -> list[Prompt]:
        """The prompts of the evaluation, read once."""
        if self.held_out is None:
            assert self.resolved.evaluation is not None
            self.held_out = readable(self.policy, self.resolved.evaluation.prompts.load(), self.tracking.say)
        return self.held_out

    def _chance(self, stage: ResolvedStage) -> dict[str, float]:
        """What guesses earn by the pointwise rewards that compare with a target; it does not change, so once per stage."""
        settings = self.config.evaluation
        assert settings is not None
        if stage.name not in self.chances:
            judges = {name: use._replace(then=()) for name, use in self._rewards(stage).items()
                      if "target" in use.reward.inputs() and use.reward.scope == "pointwise"}  # fmt: skip
            self.chances[stage.name] = chance(self._held_out(), RewardSet(judges), self.group, settings.by)
        return self.chances[stage.name]

    def _rewards(self, stage: ResolvedStage) -> dict[str, Use]:
        """Rewards of the stage and of the evaluation, by name."""
        assert self.resolved.evaluation is not None
        return {**(stage.rewards if isinstance(stage, ResolvedDraws) else {}), **self.resolved.evaluation.rewards}

    def _with_weights(
        self, optimization: Optimization, averaged: bool, stage: ResolvedStage, draws: Any, blind: bool
    ) -> Evaluation:
        settings, resolved = self.config.evaluation, self.resolved.evaluation
        assert settings is not None and resolved is not None
        objective = stage.objective if blind and isinstance(stage, ResolvedRL) else None
        rewards = RewardSet(self._rewards(stage), held_out=resolved.rewards if objective is not None else ())
        arguments = (self.policy, resolved.plan, draws, rewards, settings.pictures, resolved.plan.micro_batch,
                     self.group, settings.by, blind, objective)  # fmt: skip
        if not averaged:
            return evaluate(*arguments)
        with optimization.averaged():
            return evaluate(*arguments)

    def _save_pictures(self, result: Evaluation, stage: ResolvedStage, when: str) -> None:
        if self.group.main and result.pictures:
            name = f"{self.state.total:06d}_{stage.name}_{when}"
            save_pictures(result.pictures, self.folder.samples, name)
            self.tracking.picture(f"samples/{stage.name}", self.folder.samples / f"{name}.png", self.state.total)

    def _checkpoint(self, work: Work, optimization: Optimization) -> None:
        """Rank 0 writes; if it cannot, every rank stops with its reason."""
        problem: Exception | None = None
        if self.group.main:
            self.tracking.sync()
            tensors, numbers = optimization.state()
            tensors |= {"trainable": dict(self.policy.trainable()), "frozen": dict(self.policy.frozen_state())}
            saved = {
                "train": asdict(self.state),
                "work": work.state(),
                "optimization": numbers,
                "world": self.group.world,
            }
            try:
                checkpoint.save(
                    self.folder.checkpoints, self.state.total, tensors, saved, self.config.checkpoint.keep_last
                )
            except Exception as error:  # raised again on every rank, so that no rank waits for ever
                problem = error
        self.group.raise_together(problem)

    def _restore(self, work: Work, optimization: Optimization) -> None:
        assert self.restored is not None
        tensors, saved = self.restored
        restore_weights(self.policy, tensors)
        optimization.load(tensors, saved["optimization"])
        work.load_state(saved["work"])
        self.restored = None

    def _summary(self) -> dict[str, Any]:
        state = self.state
        stages: dict[str, Any] = {}
        for done in state.stages_done:
            mine = [entry for entry in state.evaluations if entry["stage"] == done["stage"]]
            by_when = {entry["when"]: entry for entry in mine}
            stages[done["stage"]] = {
                **{key: value for key, value in done.items() if key != "stage"},
                **{when: by_when[when] for when in ("before", "after") if when in by_when},
            }
        return {
            "stages": stages,
            "failed_rewards": state.failed,
            "failed_evaluations": state.failed_held_out,
            "skipped_rewards": state.skipped,
            "skipped_updates": state.skipped_updates,
            "processes": self.group.world,
        }

    @contextmanager
    def _stop_on_signal(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM ends the run after the current step and a checkpoint; the second one at once."""

        def handler(number: int, frame: Any) -> None:
            if self.stop:
                raise Interrupted("stopped at once, without a checkpoint")
            self.stop = True
            self.tracking.say(
                "stopping after this step and a checkpoint; a second signal stops at once, without a checkpoint"
            )

        old: dict[int, Any] = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                old[number] = signal.signal(number, handler)
            yield
        finally:
            for restored, previous in old.items():
                signal.signal(restored, previous)


def restore_weights(policy: Policy, tensors: dict[str, dict[str, torch.Tensor]], averaged: bool = False) -> None:
    """Put a checkpoint's weights into a prepared policy; with `averaged`, the moving average where there is one."""
    policy.load_frozen_state(tensors.get("frozen", {}))
    source = tensors["ema"] if averaged and "ema" in tensors else tensors["trainable"]
    parameters = policy.trainable()
    assert set(parameters) == set(source), "the checkpoint holds other parameters than this config trains"
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(source[name])


def _needs_reference(stage: ResolvedStage) -> bool:
    if isinstance(stage, ResolvedRL):
        return any(model == "reference" for _, model in stage.objective.needs)
    if isinstance(stage, ResolvedDirect):
        return stage.section.penalty > 0
    return isinstance(stage, ResolvedPreference)
