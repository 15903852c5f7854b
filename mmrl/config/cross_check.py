"""Whether the parts of a stage fit each other, the policy and the number of processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mmrl.components import names, resolve
from mmrl.compose.transform import Transform
from mmrl.config.builder import Builder
from mmrl.config.checklists import check_checklist
from mmrl.config.resolved import ResolvedDirect, ResolvedDraws, ResolvedRL, ResolvedStage
from mmrl.config.schema import Config, PreferenceStage, RLStage
from mmrl.config.source import Path_
from mmrl.curriculum.selection import SelectSignal
from mmrl.objective.surrogate import Surrogate
from mmrl.objective.wants import lacking
from mmrl.parity import is_exact
from mmrl.reward import Reward, RewardSet, Use
from mmrl.reward.base import bounds, worded
from mmrl.seeding import derive_seed

PARITY_TOLERANCE = 1e-4
"""Largest |ratio - 1| before the first update where neither the config nor the clip range says less."""

LOOK_AHEAD = 1000
"""Iterations whose trained steps are looked at before the run."""


def clip_range(surrogate: Surrogate | None, policy: Any = None) -> float | None:
    """The `clip_range` of a surrogate; None where parity says nothing about it."""
    if surrogate is None or not is_exact(policy):
        return None  # parity is a mean, and ratios start at a replay
    return surrogate.clip_range


def default_tolerance(surrogate: Surrogate | None, policy: Any = None) -> float:
    """The `parity_tolerance` of a stage that sets none."""
    narrow = clip_range(surrogate, policy)
    usual = getattr(policy, "replay_tolerance", PARITY_TOLERANCE)
    return usual if narrow is None else min(usual, narrow / 2)


def planned_steps(stage: ResolvedRL, policy: Any, seed: int, iteration: int = 0) -> torch.Tensor:
    """Steps `(S,)` bool that an iteration may train, under the run's `seed`."""
    objective = stage.objective
    size = objective.num_steps(policy.plan_steps(stage.plan))
    allowed = objective.plan_steps(size, iteration, derive_seed(seed, stage.name, "steps"))
    if objective.forward is None and hasattr(policy, "forced_steps"):
        return allowed | policy.forced_steps(stage.plan)
    return allowed


def trained_steps(stage: ResolvedRL, policy: Any, seed: int, iteration: int = 0) -> int:
    """Steps of one sample that an iteration trains, under the run's `seed`."""
    objective = stage.objective
    allowed = planned_steps(stage, policy, seed, iteration)
    mask = (policy.stochastic_steps(stage.plan, allowed) if objective.forward is None else allowed)[None, :]
    return int(stage.objective.train_mask(mask, allowed, [0], torch.ones(1, dtype=torch.bool)).sum())


def check_stage(stage: ResolvedStage, policy: Any, config: Config, build: Builder) -> None:
    """What a stage must fulfil whose parts are all there."""
    section, path = stage.section, ("stages", stage.name)
    build.check((*path, "train"), getattr(policy, "check_train", lambda train: None), stage.train)
    if isinstance(stage, ResolvedDraws):
        check_inputs(stage.rewards, (*path, "rewards"), policy, build)
    if isinstance(section, PreferenceStage) and not hasattr(policy, "given"):
        build.problem(
            (*path, "kind"),
            "a preference stage compares answers that are given, and "
            f" {type(policy).__name__} cannot score one; use a policy that writes text (vlm, tiny_qwen3vl)",
        )
    updates = section.updates_per_rollout * section.epochs if isinstance(section, RLStage) else 1
    total, warmup = section.steps * updates, section.optimizer.warmup_steps
    if warmup and warmup >= total:
        build.problem(
            (*path, "optimizer", "warmup_steps"),
            f"{warmup} steps of warm-up, but the stage makes {total} "
            f"optimizer steps ({section.steps} steps x {updates} updates); use 0 to {total - 1}",
        )
    if isinstance(stage, ResolvedRL):
        _check_rl(stage, policy, config, build)
    if isinstance(stage, ResolvedDirect):
        _check_direct(stage, policy, config, build)


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


def _check_direct(stage: ResolvedDirect, policy: Any, config: Config, build: Builder) -> None:
    section, path = stage.section, ("stages", stage.name)
    if not hasattr(policy, "drawn_with_gradient"):
        build.problem(
            (*path, "kind"),
            "a direct stage takes the gradient of a picture, and this policy draws none; use an rl stage",
        )
        return
    build.check((*path, "last"), policy.check_gradient, stage.plan, section.last)
    build.check((*path, "rewards"), lambda: RewardSet(stage.rewards).check_trained())
    for name, use in stage.rewards.items():
        if not use.reward.differentiable:
            known = ", ".join(n for n in names("reward") if getattr(resolve("reward", n), "differentiable", False))
            build.problem(
                (*path, "rewards", name),
                f"{section.rewards[name].name} has no gradient, which a direct stage needs; these have one: {known}",
            )
    processes = config.run.num_processes or 1
    if section.batch_size < processes:
        build.problem(
            (*path, "batch_size"),
            f"{section.batch_size} samples per step cannot feed {processes} processes; use {processes}",
        )


def check_inputs(rewards: Mapping[str, Use], path: Path_, policy: Any, build: Builder) -> None:
    """Rewards that need what the samples of the policy never are."""
    makes = getattr(policy, "makes", None)
    for name, use in rewards.items():
        other = (
            []
            if use.reward is None
            else [n for n in use.reward.inputs() if n in ("text", "image", "video") and n != makes]
        )
        if makes is not None and other:
            build.problem(
                (*path, name),
                f"needs {other[0]}, and {type(policy).__name__} makes {makes}: it would skip every sample; leave it out",
            )


def _wrong_transforms(stage: ResolvedRL, build: Builder) -> bool:
    """Report transforms that read a reward which the stage does not have, or that do not fit its weight or the objective."""
    before = len(build.problems)
    for name, use in stage.rewards.items():
        for place, transform in enumerate(use.then):
            here = ("stages", stage.name, "rewards", name, "then", place)
            build.check(here, transform.check_weight, use.weight)
            if transform.scales and stage.objective.combine != "rewards":
                build.problem(
                    here,
                    f"its size is what it is about, and combine: {stage.objective.combine} lets the advantage rule see this reward by "
                    "itself; use combine: rewards",
                )
            for other in transform.reads:
                if other in stage.rewards:
                    build.check(here, _check_read, transform, other, stage.rewards[other].reward)
                    continue
                build.problem(
                    here,
                    f"reads a reward '{other}', which this stage does not have (it has: {', '.join(stage.rewards)})",
                )
    return len(build.problems) > before


def _check_read(transform: Transform, other: str, reward: Reward) -> None:
    try:
        low, high = bounds(reward.limits())
    except Exception as error:
        raise ValueError(f"limits() of reward '{other}' raised {worded(error)}") from error
    transform.check_read(other, low, high)


def _check_whole_groups(stage: ResolvedRL, processes: int, build: Builder) -> None:
    """Groups that are neither split over chunks nor over updates nor over processes."""
    section, path = stage.section, ("stages", stage.name)
    who = f"surrogate {section.objective.surrogate.name} needs whole groups"
    size = stage.objective.selection_size or section.group_size
    if section.micro_batch < size:
        build.problem((*path, "micro_batch"), f"{who} in a micro-batch, got {section.micro_batch}; use {size} or more")
    for number, what in ((section.updates_per_rollout, "updates"), (processes, "processes")):
        if section.prompts_per_step % number:
            near = -(-section.prompts_per_step // number) * number
            build.problem(
                (*path, "prompts_per_step"),
                f"{who}, and {section.prompts_per_step} groups do not divide into {number} {what}; use {near}",
            )


def _check_memory(stage: ResolvedRL, build: Builder) -> None:
    """What leaves out groups without differences, where these are remembered and trained on as well."""
    section, path = stage.section, ("stages", stage.name)
    who = f"advantage {section.objective.advantage.name} compares with the earlier groups of a prompt, so"
    if section.curriculum.refill is not None:
        build.problem(
            (*path, "curriculum", "refill"),
            f"{who} groups without differences teach too and are to be remembered, and a refill drops them; leave one out",
        )
    if isinstance(stage.objective.selection, SelectSignal):
        build.problem(
            (*path, "objective", "selection"),
            f"{who} groups without differences teach too, and selection signal leaves them out; leave one out",
        )


def _check_rl(stage: ResolvedRL, policy: Any, config: Config, build: Builder) -> None:
    section, path = stage.section, ("stages", stage.name)
    before = len(build.problems)
    samples = section.prompts_per_step * section.group_size
    if samples % section.updates_per_rollout:
        divisors = [d for d in range(1, samples + 1) if samples % d == 0]
        near = sorted(sorted(divisors, key=lambda d: abs(d - section.updates_per_rollout))[:3])
        build.problem(
            (*path, "updates_per_rollout"),
            f"{section.prompts_per_step} prompts x {section.group_size} samples = {samples} do not divide into "
            f"{section.updates_per_rollout} updates; nearest valid: {', '.join(map(str, near))}",
        )
    processes = config.run.num_processes or 1
    if samples < processes:
        build.problem(
            (*path, "group_size"),
            f"{samples} samples per step cannot feed {processes} processes; raise prompts_per_step or group_size",
        )
    if section.group_size == 1 and stage.objective.advantage.remembers is None:
        build.problem((*path, "group_size"), "a group of 1 has no relative advantage (it is always 0); use 2 or more")
    if section.curriculum.refill is not None and getattr(stage.plan, "fan_out", None) is not None:
        build.problem(
            (*path, "curriculum", "refill"),
            "a refill judges whole groups, and fan_out compares the samples of one step with each other; leave one out",
        )
    if stage.objective.advantage.remembers is not None:
        _check_memory(stage, build)
    if not _wrong_transforms(stage, build):
        build.check((*path, "rewards"), lambda: RewardSet(stage.rewards).check_trained())
    build.check((*path, "rollout"), policy.check_plan, stage.plan, stage.objective)
    if hasattr(stage.plan, "check_group"):
        build.check((*path, "group_size"), stage.plan.check_group, section.group_size)
    for place, text in lacking(stage.objective, policy):
        build.problem((*path, "objective", *place), text)
    build.check(
        (*path, "objective", "steps", "select"),
        stage.objective.select.validate_for,
        stage.objective.num_steps(policy.plan_steps(stage.plan)),
    )
    if stage.objective.forward is not None and section.old_log_probs == "rollout":
        build.problem(
            (*path, "old_log_probs"),
            f"surrogate {section.objective.surrogate.name} sees finished samples, of which a rollout says no log-prob; use auto",
        )
    if stage.objective.whole_groups:
        _check_whole_groups(stage, processes, build)
    check_checklist(stage, policy, build)
    for number, shaping in enumerate(stage.objective.shaping):
        for name in shaping.reads_rewards:
            if name not in stage.rewards:
                build.problem(
                    (*path, "objective", "shaping", number),
                    f"reads a reward '{name}', which this stage does not have (it has: {', '.join(stage.rewards)})",
                )
    if stage.objective.correction is not None and section.old_log_probs == "rollout":
        build.problem(
            (*path, "old_log_probs"),
            "rollout takes the engine's log-probs for the trainer's own, so objective.correction has nothing to correct; use "
            "auto or replay, or leave the correction out",
        )
    check = getattr(stage.objective.selection, "validate_for", None)
    if check is not None:
        build.check((*path, "objective", "selection"), check, section.group_size)
    narrow = clip_range(stage.objective.surrogate, policy)
    if narrow is not None and stage.parity_tolerance > narrow:
        build.problem(
            (*path, "parity_tolerance"),
            f"{stage.parity_tolerance:g} is wider than the clip range "
            f"{narrow:g}: a replay that is off by more than the range would pass and be clipped; use {narrow:g} or less",
        )
    if len(build.problems) == before:
        build.check((*path, "objective", "steps", "select"), _trains_something, stage, policy, config.run.seed)
