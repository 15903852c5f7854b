"""What if the rewards had been others? `mmrl reward replay` scores kept samples again and compares the advantages."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mmrl.advantage.types import Floats, Ints
from mmrl.config.replaced import replaced
from mmrl.config.resolve import load
from mmrl.config.resolved import Resolved, ResolvedRL
from mmrl.distributed import Group
from mmrl.errors import UserError
from mmrl.folder import RunFolder, open_run, write_bytes, write_json, write_text
from mmrl.replay import kept
from mmrl.replay.rescore import Rescored, Rescorer
from mmrl.replay.shift import Shift, changed_most, shift
from mmrl.report.moved import draw_moved
from mmrl.reward import RewardSet
from mmrl.rollout import FAILED, OK, SKIPPED, STATUS_NAMES
from mmrl.terminal import show_line, show_table

PROMPTS, SHOWN, FAILURES = 10, 6, 3
"""Groups that changed most, samples shown of each, and failures shown."""


@dataclass(frozen=True)
class Replayed:
    """A step with its old and its new numbers; `kept` has no samples any more, only the `prompts` (n) that they are of."""

    kept: kept.Kept
    prompts: tuple[str, ...]
    again: Rescored


@dataclass
class Replay:
    """All steps, and the rewards they were scored with."""

    name: str
    rewards: RewardSet
    steps: list[Replayed] = field(default_factory=list)

    def joined(self, pick: Any) -> np.ndarray:
        """What `pick` takes of a step, of all steps behind each other."""
        return np.concatenate([pick(one) for one in self.steps])

    @property
    def group(self) -> Ints:
        """(N,) numbers that samples share that are compared, over all steps."""
        pairs = [np.stack([np.full(len(one.prompts), one.kept.step), one.kept.compared], 1) for one in self.steps]
        return np.asarray(np.unique(np.concatenate(pairs), axis=0, return_inverse=True)[1]).reshape(-1)


def replay(run: Path, config: str, stage: str | None, steps: Sequence[int] | None, console: Console) -> Replay:
    """Score the kept samples of a run with the rewards of `config`. Raises UserError for what is not there or cannot be compared."""
    folder = open_run(run)
    own = load(str(folder.config), read_data=False)
    section = _stage(own, folder, stage)
    found = _steps(kept.steps(folder.path / kept.FOLDER / section.name), steps, section.name)
    other, name = replaced(own, section.name, config)
    rewards = RewardSet(other.rewards)
    score = Rescorer(rewards, other.objective, section.section, list(found))
    rewards.setup(Group(own.config.run.device).device)
    result = Replay(name, rewards)
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


def shifts(found: Replay) -> dict[str, Shift]:
    """By step ("10"), and "all" of them together."""
    result = {str(one.kept.step): shift(one.kept.total, one.again.total, one.kept.advantage, one.again.advantage, one.kept.compared)
              for one in found.steps}  # fmt: skip
    old, new, before, after = (found.joined(pick) for pick in PICKS)
    return result | {"all": shift(old, new, before, after, found.group)}


PICKS = (
    lambda one: one.kept.total,
    lambda one: one.again.total,
    lambda one: one.kept.advantage,
    lambda one: one.again.advantage,
)
"""Totals and advantages, old and new each, of a step."""


def same(found: Replay) -> tuple[int, int, int, int]:
    """How many scores of rewards that have the name of an old one are what they were, of how many; and so of the advantages."""
    equal = values = 0
    for one in found.steps:
        for column, name in enumerate(found.rewards.names):
            if name in one.kept.names:
                old = one.kept.names.index(name)
                alike = one.kept.status[:, old] == one.again.status[:, column]
                alike &= (one.kept.values[:, old] == one.again.values[:, column]) | (one.again.status[:, column] != OK)
                equal, values = equal + int(alike.sum()), values + len(alike)
    before, after = found.joined(PICKS[2]), found.joined(PICKS[3])
    return equal, values, int((before == after).sum()), len(before)


def show(found: Replay, console: Console) -> None:
    """The tables."""
    failed = {str(one.kept.step): _failed(one.again.status) for one in found.steps}
    failed["all"] = sum(failed.values())
    rows = [[name, one.samples, failed[name], _said(one.old_mean), _said(one.new_mean), _said(one.pearson), _said(one.spearman),
             _share(one.flipped), _share(one.best), _said(one.moved), f"{one.flat_old} > {one.flat_new} of {one.groups}"]
            for name, one in shifts(found).items()]  # fmt: skip
    show_table(
        console,
        ["step", "samples", "failed", "old reward", "new reward", "pearson", "spearman", "other sign", "other best",
         "|change|", "no signal"],
        rows,
        "old > new, by step",
    )  # fmt: skip
    show_line(console, "")
    show_table(console, ["reward", "weight", "mean", "ok", "failed", "skipped"], _reward_rows(found), "new rewards")
    show_line(console, "")
    _show_groups(found, console)


def _failed(status: Ints) -> int:
    """Samples on which a reward failed."""
    return int((status == FAILED).any(1).sum())


def _reward_rows(found: Replay) -> list[list[object]]:
    values, status = found.joined(lambda one: one.again.values), found.joined(lambda one: one.again.status)
    rows: list[list[object]] = []
    for column, (name, weight) in enumerate(zip(found.rewards.names, found.rewards.weights, strict=True)):
        own = values[status[:, column] == OK, column]
        counts = [int((status[:, column] == code).sum()) for code in (OK, FAILED, SKIPPED)]
        rows.append([name, f"{weight:g}", _said(float(own.mean()) if own.size else None), *counts])
    return rows


def _show_groups(found: Replay, console: Console) -> None:
    before, after = found.joined(PICKS[2]), found.joined(PICKS[3])
    steps = found.joined(lambda one: np.full(len(one.prompts), one.kept.step))
    members = found.joined(lambda one: one.kept.member)
    prompts = [prompt for one in found.steps for prompt in one.prompts]
    rows = []
    for group in changed_most(before, after, found.group, PROMPTS):
        order = group[np.argsort(-np.abs(after - before)[group], kind="stable")]
        shown = [f"#{members[row]} {before[row]:+.2f} > {after[row]:+.2f}" for row in order[:SHOWN]]
        more = f", and {len(order) - SHOWN} more" if len(order) > SHOWN else ""
        moved = float(np.abs(after - before)[group].mean())
        rows.append([prompts[group[0]], steps[group[0]], f"{moved:.3g}", ", ".join(shown) + more])
    if rows:
        show_table(console, ["prompt", "step", "|change|", "#sample: old > new advantage"], rows, "changed most")
    else:
        show_line(console, "no advantage changed")


def _said(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def write(found: Replay, out: Path) -> list[Path]:
    """`replay.jsonl`, a line per sample, `replay.json`, the tables as numbers, and `replay.png`. Returns their names."""
    out.mkdir(parents=True, exist_ok=True)
    lines, table, picture = (out / f"replay.{kind}" for kind in ("jsonl", "json", "png"))
    write_text(lines, "".join(json.dumps(line) + "\n" for line in _lines(found)))
    equal, values, alike, advantages = same(found)
    write_json(
        table,
        {
            "rewards": dict(zip(found.rewards.names, found.rewards.weights, strict=True)),
            "same_values": [equal, values],
            "same_advantages": [alike, advantages],
            "steps": {name: asdict(one) for name, one in shifts(found).items()},
        },
    )
    old, new, before, after = (found.joined(pick) for pick in PICKS)
    write_bytes(
        picture, draw_moved(old, new, before, after, f"{found.name}: {len(old)} samples of {len(found.steps)} steps")
    )
    return [lines, table, picture]


def _lines(found: Replay) -> Iterable[dict[str, Any]]:
    for one in found.steps:
        was, now = one.kept, one.again
        for row, prompt in enumerate(one.prompts):
            yield {
                "step": was.step,
                "group": int(was.group[row]),
                "member": int(was.member[row]),
                "prompt": prompt,
                "old": _side(was.names, was.values[row], was.status[row], was.total[row], was.advantage[row]),
                "new": _side(found.rewards.names, now.values[row], now.status[row], now.total[row], now.advantage[row]),
            }


def _side(names: Sequence[str], values: Floats, status: Ints, total: float, advantage: float) -> dict[str, Any]:
    return {
        "total": None if np.isnan(total) else float(total),
        "advantage": float(advantage),
        "values": {name: None if np.isnan(value) else float(value) for name, value in zip(names, values, strict=True)},
        "status": {name: STATUS_NAMES[code] for name, code in zip(names, status, strict=True)},
    }


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
