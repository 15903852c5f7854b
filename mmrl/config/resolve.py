"""Config -> a plan of built components, cross-checked, before any weight is loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ValidationError

from mmrl import components
from mmrl.config.schema import (
    Config,
    ExamplesStage,
    PreferenceStage,
    RewardSpec,
    RLStage,
    Spec,
    StageSection,
    SupervisedStage,
)
from mmrl.config.source import Path_, Source, read
from mmrl.config.validate import lines, validate
from mmrl.errors import ConfigError, UserError
from mmrl.objective.objective import Objective
from mmrl.objective.wants import check_policy
from mmrl.reward import RewardSet
from mmrl.rollout import Prompt
from mmrl.sampler import GroupSampler
from mmrl.seeding import derive_seed

STAGE_NAME = re.compile(r"[A-Za-z0-9_-]+")
"""A stage's name is part of file names, of log keys and of keys on the command line."""

PARITY_TOLERANCE = 1e-4
"""Largest |ratio - 1| before the first update where neither the config nor the clip range says less."""

LOOK_AHEAD = 1000
"""Iterations whose trained steps are looked at before the run."""


@dataclass
class ResolvedStage:
    """One stage: its section, the family's `train` block, and the components of its kind."""

    name: str
    section: StageSection
    train: BaseModel


@dataclass
class ResolvedExamples(ResolvedStage):
    section: ExamplesStage
    examples: Any


@dataclass
class ResolvedSupervised(ResolvedExamples):
    section: SupervisedStage


@dataclass
class ResolvedPreference(ResolvedExamples):
    section: PreferenceStage


@dataclass
class ResolvedRL(ResolvedStage):
    section: RLStage
    prompts: Any
    plan: BaseModel
    rewards: dict[str, tuple[Any, float]]
    objective: Objective
    parity_tolerance: float
    """The one in force: the config's, or `default_tolerance`."""


@dataclass
class ResolvedEvaluation:
    prompts: Any
    plan: BaseModel
    rewards: dict[str, tuple[Any, float]]


@dataclass
class Resolved:
    """Everything a run needs, built from names and checked; `policy` has not loaded its weights yet."""

    config: Config
    source: Source
    policy: Any
    stages: list[ResolvedStage]
    evaluation: ResolvedEvaluation | None


class _Builder:
    """Builds components and gathers every problem, so that a user sees all of them at once."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.problems: list[str] = []

    def component(self, kind: str, spec: Spec, path: Path_) -> Any:
        options = spec.options()
        try:
            return components.build(kind, {"name": spec.name, **options}, self.source.folder)
        except ValidationError as error:
            found = components.resolve(kind, spec.name, self.source.folder)
            model = found if isinstance(found, type) else BaseModel
            self.problems += lines(error, model, self.source, path)
        except UserError as error:
            self.problems.append(f"{self.source.where((*path, 'name'))}: {'.'.join(map(str, path))}: {error}")
        return None

    def block(self, model: type[BaseModel] | None, value: Any, path: Path_) -> Any:
        if model is None:
            return None
        try:
            return validate(model, value, self.source, path)
        except ConfigError as error:
            self.problems.append(str(error))
            return None

    def rewards(self, specs: dict[str, RewardSpec], path: Path_) -> dict[str, tuple[Any, float]]:
        return {name: (self.component("reward", spec, (*path, name)), spec.weight) for name, spec in specs.items()}

    def check(self, path: Path_, action: Any, *args: Any) -> None:
        """Run a component's own check; its ValueError becomes a line at `path`."""
        try:
            action(*args)
        except ValueError as error:
            self.problems.append(f"{self.source.where(path)}: {'.'.join(map(str, path))}: {error}")


def load(config: str, overrides: Sequence[str] = (), read_data: bool = True) -> Resolved:
    """Read, type-check, build and cross-check a config, down to the prompt files with `read_data`.

    Raises ConfigError listing every problem found.
    """
    source = read(config, overrides)
    return resolve(validate(Config, source.tree, source), source, read_data)


def resolve(config: Config, source: Source, read_data: bool = True) -> Resolved:
    """Build and cross-check a typed config. Raises ConfigError listing every problem found."""
    build = _Builder(source)
    policy = build.component("policy", config.policy, ("policy",))
    plan_type, train_type = getattr(policy, "plan_type", None), getattr(policy, "train_type", None)
    sampling_type = getattr(policy, "sampling_type", None)
    stages: list[ResolvedStage] = []
    for name, section in config.stages.items():
        path: Path_ = ("stages", name)
        if not STAGE_NAME.fullmatch(name):
            build.problems.append(
                f"{source.where(path)}: stages.{name}: a stage's name is made of letters, digits, _ and -, got {name!r}"
            )
        train = build.block(train_type, section.train, (*path, "train"))
        if isinstance(section, SupervisedStage):
            examples = build.component("examples", section.examples, (*path, "examples"))
            stages.append(ResolvedSupervised(name, section, train, examples))
        elif isinstance(section, PreferenceStage):
            examples = build.component("examples", section.examples, (*path, "examples"))
            stages.append(ResolvedPreference(name, section, train, examples))
        else:
            stages.append(_rl(name, section, train, policy, plan_type, build))
    evaluation = None
    if config.evaluation is not None:
        evaluation = ResolvedEvaluation(
            build.component("prompts", config.evaluation.prompts, ("evaluation", "prompts")),
            build.block(sampling_type, config.evaluation.sampling, ("evaluation", "sampling")),
            build.rewards(config.evaluation.rewards, ("evaluation", "rewards")),
        )
    if not build.problems:
        for stage in stages:
            _check_stage(stage, policy, build)
            if isinstance(stage, ResolvedRL):
                _cross_check(stage, policy, config, build)
                for name in set(stage.rewards) & set(evaluation.rewards if evaluation is not None else ()):
                    build.problems.append(
                        f"{source.where(('evaluation', 'rewards', name))}: evaluation.rewards.{name}: stage '{stage.name}' "
                        "trains on a reward of that name (which is evaluated anyway); give the held-out one another name"
                    )
        if read_data:
            _read_data(stages, evaluation, build)
    if build.problems:
        raise ConfigError("\n".join(build.problems))
    return Resolved(config, source, policy, stages, evaluation)


def _rl(
    name: str, section: RLStage, train: Any, policy: Any, plan_type: type[BaseModel] | None, build: _Builder
) -> ResolvedRL:
    path: Path_ = ("stages", name)
    here: Path_ = (*path, "objective")
    spec = section.objective
    parts = {
        "advantage": build.component("advantage", spec.advantage, (*here, "advantage")),
        "shaping": tuple(build.component("shaping", s, (*here, "shaping", i)) for i, s in enumerate(spec.shaping)),
        "selection": build.component("selection", spec.selection, (*here, "selection")),
        "select": build.component("steps", spec.steps.select, (*here, "steps", "select")),
        "weight": build.component("weight", spec.steps.weight, (*here, "steps", "weight")),
        "surrogate": build.component("surrogate", spec.surrogate, (*here, "surrogate")),
        "terms": tuple(build.component("term", s, (*here, "terms", i)) for i, s in enumerate(spec.terms)),
    }
    objective: Any = None
    if all(part is not None for value in parts.values() for part in (value if isinstance(value, tuple) else (value,))):
        correction = None
        if spec.correction is not None:
            correction = build.component("correction", spec.correction, (*here, "correction"))
        objective = Objective(**parts, correction=correction, aggregate=spec.aggregate, max_steps=spec.max_steps)
    return ResolvedRL(
        name,
        section,
        train,
        build.component("prompts", section.prompts, (*path, "prompts")),
        build.block(plan_type, section.rollout, (*path, "rollout")),
        build.rewards(section.rewards, (*path, "rewards")),
        objective,
        section.parity_tolerance or default_tolerance(parts["surrogate"], policy),
    )


def clip_range(surrogate: Any) -> float | None:
    """How far the ratio may go on the narrower side before the surrogate clips it, None when it does not clip steps."""
    if getattr(surrogate, "whole_samples", False):
        return None  # a ratio of whole samples, while parity is that of steps
    bounds = [getattr(surrogate, key, None) for key in ("low", "high")]
    return min((float(bound) for bound in bounds if isinstance(bound, (int, float)) and bound > 0), default=None)


def default_tolerance(surrogate: Any, policy: Any = None) -> float:
    """The `parity_tolerance` of a stage that sets none."""
    narrow = clip_range(surrogate)
    usual = getattr(policy, "replay_tolerance", PARITY_TOLERANCE)
    return usual if narrow is None else min(usual, narrow / 2)


def trained_steps(stage: ResolvedRL, policy: Any, seed: int, iteration: int = 0) -> int:
    """Steps of one sample that an iteration trains, under the run's `seed`."""
    allowed = stage.objective.plan_steps(
        policy.plan_steps(stage.plan), iteration, derive_seed(seed, stage.name, "steps")
    )
    mask = policy.stochastic_steps(stage.plan, allowed)[None, :]
    return int(stage.objective.train_mask(mask, allowed, [0], torch.ones(1, dtype=torch.bool)).sum())


def _read_data(stages: Sequence[ResolvedStage], evaluation: ResolvedEvaluation | None, build: _Builder) -> None:
    """Open every data source once, so that a missing file or a bad line shows before weights load."""
    for stage in stages:
        path: Path_ = ("stages", stage.name)
        if isinstance(stage, ResolvedExamples):
            build.check((*path, "examples"), stage.examples.open, 0)
        elif isinstance(stage, ResolvedRL):
            build.check((*path, "prompts"), _sampler, stage)
    if evaluation is not None:
        build.check(("evaluation", "prompts"), _evaluation_prompts, stages, evaluation)


def _evaluation_prompts(stages: Sequence[ResolvedStage], evaluation: ResolvedEvaluation) -> None:
    trained = [stage.rewards for stage in stages if isinstance(stage, ResolvedRL)]
    for rewards in (*trained, evaluation.rewards):
        _targets(evaluation.prompts.load(), rewards)


def _sampler(stage: ResolvedRL) -> None:
    """Read the prompts; raises ValueError when they cannot fill a step or lack the target that a reward compares with."""
    prompts = stage.prompts.load()
    GroupSampler(prompts, stage.section.prompts_per_step, stage.section.group_size)
    _targets(prompts, stage.rewards)


def _targets(prompts: Sequence[Prompt], rewards: dict[str, tuple[Any, float]]) -> None:
    for name, (reward, _) in rewards.items():
        if "target" in reward.inputs() and all(prompt.target is None for prompt in prompts):
            raise UserError(f"reward '{name}' compares with a target, and none of the {len(prompts)} prompts has one")


def _check_stage(stage: ResolvedStage, policy: Any, build: _Builder) -> None:
    """What every kind of stage must fulfil."""
    section, path = stage.section, ("stages", stage.name)
    build.check((*path, "train"), getattr(policy, "check_train", lambda train: None), stage.train)
    if isinstance(section, PreferenceStage) and not hasattr(policy, "given"):
        build.problems.append(
            f"{build.source.where((*path, 'kind'))}: {'.'.join(path)}.kind: a preference stage compares answers that are "
            f"given, and {type(policy).__name__} cannot score one; use a policy that writes text (vlm, tiny_qwen3vl)"
        )
    updates = section.updates_per_rollout * section.epochs if isinstance(section, RLStage) else 1
    total, warmup = section.steps * updates, section.optimizer.warmup_steps
    if warmup and warmup >= total:
        here = (*path, "optimizer", "warmup_steps")
        build.problems.append(
            f"{build.source.where(here)}: {'.'.join(here)}: {warmup} steps of warm-up, but the stage makes {total} "
            f"optimizer steps ({section.steps} steps x {updates} updates); use 0 to {total - 1}"
        )


def _trains_something(stage: ResolvedRL, policy: Any, seed: int) -> None:
    """Raises ValueError when an iteration would train no step: it would go by as a step without signal."""
    for iteration in range(min(stage.section.steps, LOOK_AHEAD)):
        if trained_steps(stage, policy, seed, iteration):
            continue
        size = policy.plan_steps(stage.plan)
        every = torch.ones(size, dtype=torch.bool)
        random = policy.stochastic_steps(stage.plan, every).nonzero().flatten().tolist()
        planned = stage.objective.plan_steps(size, iteration, derive_seed(seed, stage.name, "steps"))
        raise ValueError(
            f"step {iteration + 1} of the stage would train nothing: it selects {_words(planned.nonzero().flatten().tolist())}, "
            f"and of the {size} steps of the rollout "
            + (
                f"{_words(random)} have a log-prob; select among these"
                if random
                else "none has a log-prob; use another rollout.sampler or more rollout.num_steps"
            )
        )


def _words(steps: list[int]) -> str:
    """`[0, 1, 2, 5]` -> "steps 0-2, 5"."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and step == runs[-1][-1] + 1:
            runs[-1].append(step)
        else:
            runs.append([step])
    return "steps " + ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _cross_check(stage: ResolvedRL, policy: Any, config: Config, build: _Builder) -> None:
    section, path = stage.section, ("stages", stage.name)
    before = len(build.problems)
    samples = section.prompts_per_step * section.group_size
    if samples % section.updates_per_rollout:
        divisors = [d for d in range(1, samples + 1) if samples % d == 0]
        near = sorted(sorted(divisors, key=lambda d: abs(d - section.updates_per_rollout))[:3])
        build.problems.append(
            f"{build.source.where((*path, 'updates_per_rollout'))}: {'.'.join(path)}.updates_per_rollout: "
            f"{section.prompts_per_step} prompts x {section.group_size} samples = {samples} do not divide into "
            f"{section.updates_per_rollout} updates; nearest valid: {', '.join(map(str, near))}"
        )
    processes = config.run.num_processes or 1
    if samples < processes:
        build.problems.append(
            f"{build.source.where((*path, 'group_size'))}: {'.'.join(path)}: {samples} samples per step cannot feed "
            f"{processes} processes; raise prompts_per_step or group_size"
        )
    if section.group_size == 1:
        build.problems.append(
            f"{build.source.where((*path, 'group_size'))}: {'.'.join(path)}.group_size: a group of 1 has no relative "
            "advantage (it is always 0); use 2 or more"
        )
    trained = RewardSet(stage.rewards)
    build.check((*path, "rewards"), trained.check_trained)
    build.check((*path, "rollout"), policy.check_plan, stage.plan, stage.objective)
    build.check((*path, "objective"), check_policy, stage.objective, policy)
    build.check(
        (*path, "objective", "steps", "select"), stage.objective.select.validate_for, policy.plan_steps(stage.plan)
    )
    check = getattr(stage.objective.selection, "validate_for", None)
    if check is not None:
        build.check((*path, "objective", "selection"), check, section.group_size)
    narrow = clip_range(stage.objective.surrogate)
    if narrow is not None and stage.parity_tolerance > narrow:
        here = (*path, "parity_tolerance")
        build.problems.append(
            f"{build.source.where(here)}: {'.'.join(here)}: {stage.parity_tolerance:g} is wider than the clip range "
            f"{narrow:g}: a replay that is off by more than the range would pass and be clipped; use {narrow:g} or less"
        )
    if len(build.problems) == before:
        build.check((*path, "objective", "steps", "select"), _trains_something, stage, policy, config.run.seed)
