"""What `mmrl reward replay` shows and writes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mmrl.advantage.types import Floats, Ints
from mmrl.folder import write_bytes, write_json, write_text
from mmrl.replay.replayed import PICKS, Replay, same, shifts
from mmrl.replay.shift import changed_most
from mmrl.report.moved import draw_moved
from mmrl.rollout import FAILED, OK, SKIPPED, STATUS_NAMES
from mmrl.terminal import show_line, show_table

PROMPTS, SHOWN = 10, 6
"""Groups that changed most, and samples shown of each."""


def show(found: Replay, console: Console) -> None:
    """The tables."""
    failed = {str(one.kept.step): _failed(one.again.status) for one in found.steps}
    failed["all"] = sum(failed.values())
    rows = [[name, one.samples, failed[name], _said(one.old_mean), _said(one.new_mean), _said(one.pearson), _said(one.spearman),
             _share(one.flipped), _share(one.best), _said(one.moved), f"{one.flat_old} -> {one.flat_new} of {one.groups}"]
            for name, one in shifts(found).items()]  # fmt: skip
    show_table(
        console,
        ["step", "samples", "failed", "old reward", "new reward", "pearson", "spearman", "other sign", "other best",
         "|change|", "no signal"],
        rows,
        "old -> new, by step",
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
        shown = [f"#{members[row]} {before[row]:+.2f} -> {after[row]:+.2f}" for row in order[:SHOWN]]
        more = f", and {len(order) - SHOWN} more" if len(order) > SHOWN else ""
        moved = float(np.abs(after - before)[group].mean())
        rows.append([prompts[group[0]], steps[group[0]], f"{moved:.3g}", ", ".join(shown) + more])
    if rows:
        show_table(console, ["prompt", "step", "|change|", "#sample: old -> new advantage"], rows, "changed most")
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
    title = f"{found.run}, stage {found.stage}, with the rewards of {found.name}: {len(old)} samples of {len(found.steps)} steps"
    write_bytes(picture, draw_moved(old, new, before, after, title))
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
