"""What if the rewards had been others? `mmrl reward replay` scores kept samples again and compares the advantages."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mmrl.config.replaced import replaced
from mmrl.config.resolve import load
from mmrl.config.resolved import Resolved, ResolvedRL
from mmrl.distributed import Group
from mmrl.errors import UserError
from mmrl.folder import RunFolder, open_run
from mmrl.replay import kept
from mmrl.replay.output import show, write
from mmrl.replay.replayed import Replay, Replayed, same
from mmrl.replay.rescore import Rescorer
from mmrl.reward import RewardSet, set_up
from mmrl.terminal import show_line

FAILURES = 3
"""Failures shown."""


def replay(run: Path, config: str, stage: str | None, steps: Sequence[int] | None, console: Console) -> Replay:
    """Score the kept samples of a run with the rewards of `config`. Raises UserError for what is not there or cannot be compared."""
    folder = open_run(run)
    own = load(str(folder.config), read_data=False)
    section = _stage(own, folder, stage)
    found = _steps(kept.steps(folder.path / kept.FOLDER / section.name), steps, section.name)
    other, name = replaced(own, section.name, config)
    rewards = RewardSet(other.rewards)
    score = Rescorer(rewards, other.objective, section.section, list(found))
    device = Group(own.config.run.device).device
    for key, reward in zip(rewards.names, rewards.rewards, strict=True):
        set_up(reward, f"reward '{key}'", device)
    result = Replay(name, "/".join(folder.path.absolute().parts[-2:]), section.name, rewards)
    with _progress(console) as progress:
        task = progress.add_task("samples", total=None)
        for place, path in enumerate(found.values()):
            one = kept.read(path)
            progress.update(task, total=len(one.samples) * (len(found) - place) + int(progress.tasks[0].completed))
            again = score(one, lambda number: progress.advance(task, number))
            prompts = tuple(sample.prompt.id for sample in one.samples)
            one.samples = []  # pictures of many steps need not be in memory together
            result.steps.append(Replayed(one, prompts, again))
    return result


def _stage(own: Resolved, folder: RunFolder, name: str | None) -> ResolvedRL:
    """The stage to look at: `name`, or the only one of which samples were kept."""
    stages = {stage.name: stage for stage in own.stages if isinstance(stage, ResolvedRL)}
    there = [one for one in stages if kept.steps(folder.path / kept.FOLDER / one)]
    if name is not None and name not in stages:
        raise UserError(
            f"--stage {name}: {folder.path} has no rl stage of that name (it has: {', '.join(stages) or 'none'})"
        )
    wanted = there if name is None else [one for one in there if one == name]
    if not wanted:
        which = next(iter(stages), "NAME") if name is None else name
        raise UserError(
            f"no samples were kept in {folder.path / kept.FOLDER}; train with stages.{which}.keep_samples={{every: 10}}"
        )
    if len(wanted) > 1:
        raise UserError(f"samples of several stages were kept ({', '.join(wanted)}); choose one with --stage NAME")
    return stages[wanted[0]]


def _steps(there: dict[int, Path], wanted: Sequence[int] | None, stage: str) -> dict[int, Path]:
    if wanted is None:
        return there
    missing = [step for step in wanted if step not in there]
    if missing:
        raise UserError(
            f"--steps {missing[0]}: no samples of that step of stage {stage} were kept; there is: {', '.join(map(str, there))}"
        )
    return {step: there[step] for step in sorted(set(wanted))}


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    quiet = not console.is_terminal or bool(os.environ.get("CI"))
    return Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True)


def run(folder: Path, config: str, stage: str | None, steps: str | None, out: Path | None, console: Console) -> None:
    """The command: replay, show, write. `steps` is a list such as "10,20"."""
    found = replay(folder, config, stage, None if steps is None else _numbers(steps), console)
    show(found, console)
    equal, values, alike, advantages = same(found)
    show_line(console, "")
    if values:
        show_line(console, f"same as stored: {equal} of {values} values (of rewards with the name of an old one)")
    show_line(console, f"same as stored: {alike} of {advantages} advantages")
    lost = sorted({name for one in found.steps for name in one.kept.left_out})
    if lost:
        show_line(console, f"samples were kept without what JSON cannot hold: {', '.join(lost)}")
    failures = [line for one in found.steps for line in one.again.messages]
    for line in failures[:FAILURES]:
        show_line(console, f"failed: {line}")
    if len(failures) > FAILURES:
        show_line(console, f"failed: {len(failures) - FAILURES} more")
    for path in write(found, out or folder / "replay" / found.name.replace("/", "_")):
        show_line(console, str(path))


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise UserError(f"--steps {text}: expected numbers of steps with commas between them, such as 10,20")
    return [int(part) for part in parts]
