"""`mmrl check`: what a config would do, without loading a weight."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mmrl.config.cross_check import LOOK_AHEAD, planned_steps, trained_steps
from mmrl.config.dump import dump, flatten
from mmrl.config.resolve import load
from mmrl.config.resolved import Resolved, ResolvedDirect, ResolvedDraws, ResolvedExamples, ResolvedRL, ResolvedStage
from mmrl.config.source import COMMAND_LINE, Path_
from mmrl.curriculum.selection import SelectAll
from mmrl.errors import ConfigError, UserError
from mmrl.image import read_image
from mmrl.media import is_image
from mmrl.objective.measure import replays as measured_by
from mmrl.parity import are_replayed
from mmrl.rollout import Prompt
from mmrl.terminal import show_line, show_table
from mmrl.video import open_video


def show(config: str, overrides: Sequence[str], console: Console, media: bool = False) -> None:
    """Print the plan of every stage and the origin of every value; with `media` read these files too. Raises ConfigError
    listing every problem."""
    resolved = load(config, overrides)
    read = check_media(resolved) if media else ""
    show_line(console, f"{resolved.source.name}: policy {resolved.config.policy.name}")
    for stage in resolved.stages:
        for line in describe(stage, resolved):
            show_line(console, line)
    evaluation = resolved.config.evaluation
    if evaluation is not None and resolved.evaluation is not None:
        count = len(resolved.evaluation.prompts.load())
        held_out = ", ".join(resolved.evaluation.rewards) or "none"
        show_line(
            console,
            f"evaluation: {count} prompts x {evaluation.samples_per_prompt} samples = {count * evaluation.samples_per_prompt}; "
            f"held-out rewards: {held_out}",
        )
    if media:
        show_line(console, read)
    rows = [(key, value, origin(key, resolved)) for key, value in flatten(dump(resolved)).items()]
    show_table(console, ("key", "value", "from"), rows)


def check_media(resolved: Resolved) -> str:
    """Read every picture and two frames of every video that a config trains and evaluates on, and what the examples of a
    finite source show; returns how many there are, and of which sizes.

    Raises ConfigError with one line for each that cannot be read.
    """
    problems: dict[str, None] = {}
    sizes: list[tuple[int, int]] = []
    for prompt, made in _prompts(resolved):
        where = prompt.meta.get("source", prompt.id)
        for number, item in enumerate(prompt.media, start=1):
            try:
                sizes.append(_size(item, resolved.policy))
            except ValueError as error:
                problems[f"{where}: medium {number}: {error}"] = None
        try:
            sizes += made()
        except UserError as error:
            problems[f"{where}: {error}"] = None
    if problems:
        raise ConfigError("\n".join(problems))
    if not sizes:
        return "there are no pictures or videos to read"
    low, high = min(sizes, key=math.prod), max(sizes, key=math.prod)
    between = f"{low[0]} x {low[1]}" + (f" to {high[0]} x {high[1]}" if high != low else "")
    return f"{len(sizes)} pictures and videos can be read, {between} pixels"


def _size(item: Any, policy: Any = None) -> tuple[int, int]:
    """Width and height of a medium, read. Raises ValueError for a video that `policy` cannot look at."""
    if not isinstance(item, str):
        shown = item
    elif is_image(item):
        shown = read_image(Path(item))
    else:
        video = open_video(Path(item))
        if hasattr(policy, "check_video"):
            policy.check_video(video.total)
        shown = video.frames([0, video.total - 1])
    return shown.shape[-2], shown.shape[-3]


def _made(samples: Any, position: int) -> list[tuple[int, int]]:
    """The sizes of what an example shows."""
    sample = samples[position]
    return [_size(item) for item in (*sample.images, *([] if sample.video is None else [sample.video]))]


def _prompts(resolved: Resolved) -> Iterator[tuple[Prompt, Callable[[], list[tuple[int, int]]]]]:
    """Every prompt of every stage and of the evaluation, and what reads the result of an example; of examples those of a finite
    source."""
    for stage in resolved.stages:
        if isinstance(stage, ResolvedExamples):
            samples = getattr(stage.examples.open(0), "samples", None)
            for position, prompt in enumerate([] if samples is None else samples.prompts):
                yield prompt, functools.partial(_made, samples, position)
        elif isinstance(stage, ResolvedDraws):
            yield from ((prompt, list) for prompt in stage.prompts.load())
    if resolved.evaluation is not None:
        yield from ((prompt, list) for prompt in resolved.evaluation.prompts.load())


def describe(stage: ResolvedStage, resolved: Resolved) -> list[str]:
    """The plan of one stage in lines of text."""
    policy, section = resolved.policy, stage.section
    head = f"stage {stage.name} ({section.kind}): {section.steps} steps; trains {policy.trains(stage.train)}"
    processes = resolved.config.run.num_processes or 1
    if isinstance(stage, ResolvedExamples):
        return [head, f"  {stage.section.batch_size} examples per step in micro-batches of {section.micro_batch}"]
    if isinstance(stage, ResolvedDirect):
        own = stage.section
        what = f"the last {own.last} steps" if own.method == "draft" else f"one of the last {own.last} steps"
        return [
            head,
            f"  {own.batch_size} samples per step in micro-batches of {own.micro_batch}; gradient through {what}",
        ]
    assert isinstance(stage, ResolvedRL)
    lines = [head, f"  {geometry(stage, resolved, processes)}", f"  {cost(stage, resolved)}"]
    return [*lines, f"  {policy.footprint(*_memory(stage))}"] if hasattr(policy, "footprint") else lines


def _memory(stage: ResolvedRL) -> tuple[Any, Any, int, bool, int]:
    """What the footprint of a stage depends on."""
    reference = any(model == "reference" for _, model in stage.objective.needs)
    copies = (stage.section.ema is not None) + (stage.objective.follows is not None)
    return stage.train, stage.plan, stage.section.micro_batch, reference, copies


def geometry(stage: ResolvedRL, resolved: Resolved, processes: int) -> str:
    """The batch geometry in one line."""
    section = stage.section
    samples = section.prompts_per_step * section.group_size
    planned = planned_steps(stage, resolved.policy, resolved.config.run.seed)
    trained: float = trained_steps(stage, resolved.policy, resolved.config.run.seed)
    if hasattr(resolved.policy, "trained_pairs"):
        group = section.group_size
        trained = resolved.policy.trained_pairs(stage.plan, planned, int(trained), group) / group
    kept = samples * _kept(stage)
    rows = round(kept * trained if resolved.policy.flat_chunks else kept)
    per_update = -(-rows // (section.updates_per_rollout * processes))
    return (
        f"{section.prompts_per_step} prompts x {section.group_size} samples = {samples} per step; "
        f"{processes} process{'es' if processes > 1 else ''} x {-(-samples // processes)}; {trained:g} of "
        f"{stage.objective.num_steps(resolved.policy.plan_steps(stage.plan))} steps trained; {section.updates_per_rollout} update"
        f"{'s' if section.updates_per_rollout > 1 else ''} x {-(-per_update // section.micro_batch)} micro-batches of "
        f"{min(section.micro_batch, per_update)}" + (f"; {section.epochs} epochs" if section.epochs > 1 else "")
    )


def cost(stage: ResolvedRL, resolved: Resolved) -> str:
    """Forward passes of the network per image (or per sample): of the rollout, of what is measured on it, and of the update."""
    again = stage.objective.replays_old(are_replayed(stage.section.old_log_probs, resolved.policy))
    each_need = sum(_guided(stage, resolved, model) for _, model in stage.objective.needs)
    replays = (1 + each_need) * stage.section.epochs + again
    seed, group = resolved.config.run.seed, stage.section.group_size
    unseen = torch.zeros(resolved.policy.plan_steps(stage.plan), dtype=torch.bool)
    plans = {}
    for k in range(min(stage.section.steps, LOOK_AHEAD)):
        planned, measured = planned_steps(stage, resolved.policy, seed, k), _measuring(stage, k, again)
        plans[(*planned.tolist(), measured)] = planned, trained_steps(stage, resolved.policy, seed, k), measured
    each = []
    for planned, trained, measured in plans.values():
        drawn = planned if stage.objective.forward is None else unseen
        one, more = (resolved.policy.passes(stage.plan, drawn, trained, group, often) for often in (replays, measured))
        each.append((one["rollout"], more["update"], one["update"] * _kept(stage)))
    what = "image" if resolved.policy.flat_chunks else "answer"
    rollout, measuring, update = zip(*each, strict=True)
    most = (
        "" if stage.objective.selection_size is not None or type(stage.objective.selection) is SelectAll else "up to "
    )
    beside = f"up to {max(measuring):g} measuring, " if any(measuring) else ""
    return f"forward passes per {what}: {_range(rollout)} rollout, {beside}{most}{_range(update)} update"


def _measuring(stage: ResolvedRL, step: int, again: bool) -> float:
    """Replays per sample before the update of `step` (from 0), at most: for what is measured, and unless old log-probs are replayed
    `again` anyway, for those of samples that are drawn through another view."""
    objective = stage.objective
    share = {s.branch: s.branch_share(step / stage.section.steps) for s in objective.shaping if s.branch is not None}
    found = sum(share.get(name.partition("/")[2], 1.0) * measured_by(name) for name in objective.measures(step))
    return found + (0.0 if again else sum(share.values()))


def _guided(stage: ResolvedRL, resolved: Resolved, model: str) -> float:
    """Network passes of a replay of `model` over those of the policy: a reference may be guided where the policy is not."""
    forward = stage.objective.forward
    if model != "reference" or forward is None or forward.reference_guidance is None:
        return 1.0
    policy: Any = resolved.policy
    guided = stage.plan.model_copy(update={"guidance_scale": forward.reference_guidance})
    return policy.passes_per_step(guided) / policy.passes_per_step(stage.plan)


def _kept(stage: ResolvedRL) -> float:
    """The share of samples that the selection leaves, where it says how many."""
    size = stage.objective.selection_size
    return 1.0 if size is None else min(size / stage.section.group_size, 1.0)


def _range(values: Sequence[float]) -> str:
    """`12` or, where iterations differ, `7.5 to 12`."""
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def origin(key: str, resolved: Resolved) -> str:
    """File and line (or command line) of the value at a dotted key; "default" where nobody wrote it."""
    path: list[Any] = [int(part) if part.isdigit() else part for part in key.split(".")]
    known = resolved.source.origin
    found: Path_ = tuple(path)
    place = known.get(found, known.get(found[:-1], "default") if isinstance(found[-1], int) else "default")
    return COMMAND_LINE if place.startswith(COMMAND_LINE) else place
