"""Config -> a plan of built components, cross-checked, before any weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from mmrl.config.builder import Builder
from mmrl.config.cross_check import check_inputs, check_stage, default_tolerance
from mmrl.config.places import BLOCKS, PLACES, places
from mmrl.config.resolved import (
    Resolved,
    ResolvedDirect,
    ResolvedDraws,
    ResolvedEvaluation,
    ResolvedExamples,
    ResolvedPreference,
    ResolvedRL,
    ResolvedStage,
    ResolvedSupervised,
)
from mmrl.config.schema import Config, DirectStage, PreferenceStage, RewardSpec, RLStage, SupervisedStage
from mmrl.config.source import Path_, Source, read
from mmrl.config.validate import lines
from mmrl.curriculum.checklist import check_checklists
from mmrl.errors import ConfigError, UserError
from mmrl.media import check_fit
from mmrl.objective.objective import Objective
from mmrl.options import did_you_mean
from mmrl.reward import Use
from mmrl.rollout import Prompt
from mmrl.sampler import GroupSampler


def load(config: str, overrides: Sequence[str] = (), read_data: bool = True) -> Resolved:
    """Read, type-check, build and cross-check a config, down to the prompt files with `read_data`.

    Raises ConfigError listing every problem found.
    """
    source = read(config, overrides)
    try:
        typed = Config.model_validate(source.tree)
    except ValidationError as error:
        problems = lines(error, Config, source.tree, source)
        raise ConfigError("\n".join([*problems, *_problems_of_parts(source, read_data)])) from None
    return resolve(typed, source, read_data)


def _problems_of_parts(source: Source, read_data: bool) -> list[str]:
    """What is wrong with the components and blocks of a config that is not valid as a whole."""
    build = Builder(source)
    found = places(source.tree)
    family = next((build.family(place.value["name"]) for place in found if place.key == "policy"), None)
    for place in found:
        if place.key in BLOCKS:
            build.block(getattr(family, BLOCKS[place.key], None), place.value, place.path)
            continue
        built = build.named(PLACES[place.key], place.value["name"], place.options(), place.path, place.own)
        if read_data and built is not None and place.key in ("examples", "prompts"):
            build.check(place.path, *((built.open, 0) if place.key == "examples" else (built.load,)))
    return build.problems


def resolve(config: Config, source: Source, read_data: bool = True) -> Resolved:
    """Build and cross-check a typed config. Raises ConfigError listing every problem found."""
    build = Builder(source)
    policy = build.component("policy", config.policy, ("policy",))
    family = policy if policy is not None else build.family(config.policy.name)
    plan_type, sampling_type, train_type = (
        getattr(family, name, None) for name in ("plan_type", "sampling_type", "train_type")
    )
    stages: list[ResolvedStage] = []
    for name, section in config.stages.items():
        path: Path_ = ("stages", name)
        train = build.block(train_type, section.train, (*path, "train"))
        if isinstance(section, SupervisedStage):
            examples = build.component("examples", section.examples, (*path, "examples"))
            stages.append(ResolvedSupervised(name, section, train, examples))
        elif isinstance(section, PreferenceStage):
            examples = build.component("examples", section.examples, (*path, "examples"))
            stages.append(ResolvedPreference(name, section, train, examples))
        elif isinstance(section, DirectStage):
            prompts = build.component("prompts", section.prompts, (*path, "prompts"))
            plan = build.block(sampling_type, section.sampling, (*path, "sampling"))
            rewards = build.rewards(section.rewards, (*path, "rewards"))
            why = "a direct stage takes the gradient of the scores of all its pictures"
            _refuse(("then", "where", "on_failure"), section.rewards, (*path, "rewards"), why, build)
            stages.append(ResolvedDirect(name, section, train, prompts, plan, rewards))
        else:
            stages.append(_rl(name, section, train, policy, plan_type, build))
    evaluation = None
    if config.evaluation is not None:
        evaluation = ResolvedEvaluation(
            build.component("prompts", config.evaluation.prompts, ("evaluation", "prompts")),
            build.block(sampling_type, config.evaluation.sampling, ("evaluation", "sampling")),
            build.rewards(config.evaluation.rewards, ("evaluation", "rewards")),
        )
        why = "an evaluation reports scores as they are, and failures as a count"
        if policy is not None:
            check_inputs(evaluation.rewards, ("evaluation", "rewards"), policy, build)
        _refuse(("weight", "then", "on_failure"), config.evaluation.rewards, ("evaluation", "rewards"), why, build)
    for stage in stages:
        if policy is not None and stage.complete:
            check_stage(stage, policy, config, build)
        if isinstance(stage, ResolvedDraws) and evaluation is not None:
            for name in sorted(set(stage.rewards) & set(evaluation.rewards)):
                build.problem(
                    ("evaluation", "rewards", name),
                    f"stage '{stage.name}' trains on a reward of that name (which is evaluated anyway); give the held-out "
                    "one another name",
                )
    if read_data:
        _read_data(stages, evaluation, build, policy, config.policy.name)
    if build.problems:
        raise ConfigError("\n".join(build.problems))
    return Resolved(config, source, policy, stages, evaluation)


def _refuse(keys: Sequence[str], specs: Mapping[str, RewardSpec], path: Path_, why: str, build: Builder) -> None:
    """Keys of a reward that mean nothing where it stands."""
    for name, spec in specs.items():
        for key in (
            key
            for key in keys
            if getattr(spec, key) != RewardSpec.model_fields[key].get_default(call_default_factory=True)
        ):
            build.problem((*path, name, key), f"{why}; leave '{key}' out")


def _rl(
    name: str, section: RLStage, train: Any, policy: Any, plan_type: type[BaseModel] | None, build: Builder
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
    correction = None
    if spec.correction is not None:
        correction = build.component("correction", spec.correction, (*here, "correction"))
    built = [part for value in parts.values() for part in (value if isinstance(value, tuple) else (value,))]
    objective: Any = None
    if all(part is not None for part in built) and (spec.correction is None) == (correction is None):
        try:
            objective = Objective(
                **parts,
                correction=correction,
                aggregate=spec.aggregate,
                max_steps=spec.max_steps,
                combine=spec.combine,
                normalise_weights=spec.normalise_weights,
                rescale=spec.rescale,
            )
        except UserError as error:
            build.problem(here, str(error))
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


def _read_data(
    stages: Sequence[ResolvedStage], evaluation: ResolvedEvaluation | None, build: Builder, policy: Any, name: str
) -> None:
    """Open every data source once, so that a missing file, a bad line or media that the policy cannot take show before
    weights load."""

    def fit(prompts: Sequence[Prompt]) -> None:
        if policy is not None:
            check_fit(prompts, policy, name)

    for stage in stages:
        path: Path_ = ("stages", stage.name)
        if isinstance(stage, ResolvedExamples) and stage.examples is not None:
            build.check((*path, "examples"), lambda source: fit(_prompts_of(source.open(0))), stage.examples)
        elif isinstance(stage, ResolvedDraws) and stage.prompts is not None:
            build.check((*path, "prompts"), lambda stage: fit(_sampler(stage, build)), stage)
    if evaluation is not None and evaluation.prompts is not None:
        build.check(("evaluation", "prompts"), lambda of: fit(_evaluation_prompts(stages, of, build)), evaluation)


def _prompts_of(stream: Any) -> Sequence[Prompt]:
    """The prompts of a stream of examples: all of a finite one, else the first."""
    prompts: Sequence[Prompt] = stream.samples.prompts if hasattr(stream, "samples") else [stream.example(0).prompt]
    return prompts


def _evaluation_prompts(
    stages: Sequence[ResolvedStage], evaluation: ResolvedEvaluation, build: Builder
) -> list[Prompt]:
    prompts: list[Prompt] = evaluation.prompts.load()
    for stage in (stage for stage in stages if isinstance(stage, ResolvedDraws)):
        _targets(prompts, stage.rewards)
    _asked(prompts, evaluation.rewards, ("evaluation", "rewards"), build)
    _targets(prompts, evaluation.rewards)
    return prompts


def _sampler(stage: ResolvedDraws, build: Builder) -> list[Prompt]:
    """Read the prompts; raises ValueError when they cannot fill a step or lack the target that a reward compares with."""
    prompts: list[Prompt] = stage.prompts.load()
    section: Any = stage.section
    size = section.batch_size if isinstance(stage, ResolvedDirect) else section.prompts_per_step
    GroupSampler(prompts, size, 1 if isinstance(stage, ResolvedDirect) else section.group_size)
    asked = isinstance(stage, ResolvedRL) and stage.section.curriculum.checklist is not None
    every = [*prompts, *(check_checklists(prompts) if asked else ())]
    _asked(every, stage.rewards, ("stages", stage.name, "rewards"), build)
    _targets(every, stage.rewards)
    return prompts


def _asked(prompts: Sequence[Prompt], rewards: Mapping[str, Use], path: Path_, build: Builder) -> None:
    """Report rewards that none of the prompts is for."""
    for name, use in rewards.items():
        if any(map(use.asks, prompts)):
            continue
        keys = sorted({key for prompt in prompts for key in prompt.meta})
        unknown = [key for key in use.where if key not in keys]
        for key in unknown:
            near = did_you_mean(key, keys)
            build.problem(
                (*path, name, "where", key),
                f"no prompt has '{key}' in its meta{f'; {near}' if near else ''} (keys there: {', '.join(keys) or 'none'})",
            )
        if not unknown:
            there = {key: sorted({str(prompt.meta.get(key)) for prompt in prompts})[:8] for key in use.where}
            build.problem(
                (*path, name, "where"),
                f"reward '{name}' is for prompts where {dict(use.where)}, and none of the {len(prompts)} is one; there is {there}",
            )


def _targets(prompts: Sequence[Prompt], rewards: Mapping[str, Use]) -> None:
    """Raises UserError for a reward that lacks its target in all of its prompts, or cannot score one."""
    for name, use in rewards.items():
        if use.reward is None:
            continue
        own = [prompt for prompt in prompts if use.asks(prompt)]
        if own and "target" in use.reward.inputs() and all(prompt.target is None for prompt in own):
            raise UserError(f"reward '{name}' compares with a target, and none of the {len(own)} prompts has one")
        for prompt in own:
            try:
                use.reward.check_prompt(prompt)
            except ValueError as error:
                raise UserError(f"reward '{name}' cannot score the samples of a prompt: {error}") from error
