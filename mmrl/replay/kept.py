"""Scored samples of rl steps as files, so that other rewards can look at them later (`mmrl.replay`).

`FOLDER/step_000010/` holds `step.json`, `samples.jsonl` (a line per sample) and `media/`: pictures as PNG, videos as uint8
tensors, nothing lossy. Shapes: n kept samples of the N of a step, K rewards.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from mmrl.advantage.types import Floats, Ints
from mmrl.config.schema import KeepSection
from mmrl.distributed import Group
from mmrl.errors import UserError
from mmrl.folder import write_json, write_text
from mmrl.replay.sample_files import files_of, read_sample, write_sample
from mmrl.rollout import STATUS_NAMES, Sample
from mmrl.stages.rounds import PARTS, Round, Table

FOLDER = "kept"
"""Below a run's folder; in it a folder per stage."""
HEAD, LINES = "step.json", "samples.jsonl"
FORMAT = 1
PATTERN = re.compile(r"step_(\d{6,})")


@dataclass
class Kept:
    """Samples of step `step` (from 1), in the order in which the step has them.

    `drawn` is N; `names` and `weights` are those of the rewards. `group (n,)` numbers the prompts of the step, `part (n,)` divides
    groups further where samples are compared inside a part; `member (n,)`; `parent (n,)` is the group whose sub-question a sample
    answers, -1 for none. `place (n, 2)`: the rollout of the step and the rank, that
    is, what was scored together. `values (n, K)` are the scores, NaN where `status (n, K)` is not OK; `total (n,)` the reward before
    any shaping, NaN where there is none; `advantage (n,)`, of rules that have one per step `(n, S)`. `extra` are numbers `(n,)`.
    """

    step: int
    drawn: int
    names: tuple[str, ...]
    weights: tuple[float, ...]
    samples: list[Sample]
    group: Ints
    part: Ints | None
    member: Ints
    parent: Ints
    place: Ints
    values: Floats
    status: Ints
    total: Floats
    advantage: Floats
    extra: Mapping[str, Floats]
    left_out: tuple[str, ...] = ()
    """What samples had and JSON could not hold; known of samples that were read."""

    @property
    def whole(self) -> bool:
        """No sample of the step is missing."""
        return len(self.samples) == self.drawn

    @property
    def compared(self) -> Ints:
        """(n,): samples of one number are compared with each other."""
        return self.group if self.part is None else self.group * PARTS + self.part


def due(section: KeepSection, step: int) -> bool:
    """Whether the samples of `step` (from 0) are kept: those of the first step and of every `every`-th."""
    return step == 0 or (step + 1) % section.every == 0


def chosen(
    section: KeepSection,
    step: int,
    rounds: Sequence[Round],
    table: Table,
    total: Floats,
    advantage: Floats,
    rewards: Mapping[str, float],
    rank: int,
) -> Kept:
    """What this rank keeps of `step` (from 0): its samples of the first groups, and of their sub-questions. `table`, `total` and `advantage` are those of all ranks,
    `rewards` name -> weight."""
    divided = any(part.rollout.part is not None for part in rounds)
    group = table.group // PARTS if divided else table.group
    first = np.unique(group[table.parent < 0])[: section.groups]
    wanted = np.isin(np.where(table.parent < 0, group, table.parent), first)
    found: list[tuple[int, Sample, int, tuple[int, int]]] = []
    for number, part in enumerate(rounds):
        rows = range(part.rows.start, part.rows.stop)
        for row, sample, draw in zip(rows, part.rollout.samples, part.rollout.draws, strict=True):
            if wanted[row]:
                found.append((row, sample, draw.member, (number, rank)))
    rows_kept = np.array([row for row, *_ in found], dtype=np.int64)
    return Kept(
        step + 1,
        len(table.group),
        tuple(rewards),
        tuple(rewards.values()),
        [sample for _, sample, _, _ in found],
        group[rows_kept],
        table.group[rows_kept] % PARTS if divided else None,
        np.array([member for _, _, member, _ in found], dtype=np.int64),
        table.parent[rows_kept],
        np.array([place for *_, place in found], dtype=np.int64).reshape(-1, 2),
        table.values[rows_kept],
        table.status[rows_kept],
        total[rows_kept],
        advantage[rows_kept],
        {name: value[rows_kept] for name, value in table.extra.items()},
    )


def write(folder: Path, own: Kept, group: Group) -> Path:
    """Write `folder/step_000010` from what every rank keeps; one that is there already is replaced. Every rank must call, and all
    write into one file system; media do not travel between ranks. Raises UserError on every rank for what cannot be written."""
    target, temporary = folder / f"step_{own.step:06d}", folder / f".tmp_step_{own.step:06d}"
    problem: Exception | None = None
    if group.main:
        try:
            for stale in folder.glob(".tmp_step_*"):
                shutil.rmtree(stale)
            temporary.mkdir(parents=True)
        except OSError as error:
            problem = error
    group.raise_together(problem)
    records: list[dict[str, Any]] = []
    try:
        records = [_record(own, row, temporary) for row in range(len(own.samples))]
    except Exception as error:  # raised again on every rank, so that no rank waits for ever
        problem = error
    group.raise_together(problem)
    everything = group.gather(records)
    if group.main:
        try:
            _finish(own, sorted((one for part in everything for one in part), key=_order), temporary, target)
        except Exception as error:
            problem = error
    group.raise_together(problem)
    return target


def _order(record: Mapping[str, Any]) -> list[int]:
    place: list[int] = record["place"]
    return place


def _finish(own: Kept, records: Sequence[Mapping[str, Any]], temporary: Path, target: Path) -> None:
    for record in records:
        for name in files_of(record):
            if not (temporary / name).is_file():
                raise UserError(
                    f"{temporary / name} is missing: keep_samples needs a run.dir that all processes share; move it, or leave "
                    "keep_samples out"
                )
    head = {"format": FORMAT, "step": own.step, "drawn": own.drawn, "kept": len(records),
            "rewards": dict(zip(own.names, own.weights, strict=True))}  # fmt: skip
    write_text(temporary / LINES, "".join(json.dumps(record) + "\n" for record in records))
    write_json(temporary / HEAD, head)
    if target.exists():
        target.rename(target.with_name(f".tmp_{target.name}_old"))  # a half-removed one must not look complete
    temporary.rename(target)
    shutil.rmtree(target.with_name(f".tmp_{target.name}_old"), ignore_errors=True)


def _record(own: Kept, row: int, folder: Path) -> dict[str, Any]:
    return {
        "place": own.place[row].tolist(),
        "group": int(own.group[row]),
        "part": None if own.part is None else int(own.part[row]),
        "member": int(own.member[row]),
        "parent": int(own.parent[row]),
        **write_sample(own.samples[row], folder),
        "values": _numbers(own.values[row]),
        "status": [STATUS_NAMES[code] for code in own.status[row]],
        "total": _numbers(own.total[row]),
        "advantage": _numbers(own.advantage[row]),
        "extra": {name: _numbers(value[row]) for name, value in own.extra.items()},
    }


def _numbers(value: Any) -> Any:
    """Floats for JSON, which has no NaN: null. What is read back is the same to the last bit."""
    if np.ndim(value):
        return [_numbers(one) for one in value]
    return None if np.isnan(value) else float(value)


def steps(folder: Path) -> dict[int, Path]:
    """Step -> its folder, in order."""
    named = folder.iterdir() if folder.is_dir() else ()
    found = {int(match[1]): path for path in named if (match := PATTERN.fullmatch(path.name))}
    return dict(sorted(found.items()))


def read(path: Path) -> Kept:
    """What `write` wrote to a step's folder; equal media are one array. Raises UserError naming what cannot be read."""
    arrays: dict[str, np.ndarray] = {}
    where = path / HEAD
    try:
        head = json.loads(where.read_text(encoding="utf-8"))
        if head["format"] != FORMAT:
            raise UserError(f"{where} has format {head['format']}; this version reads {FORMAT}")
        where = path / LINES
        records = [json.loads(line) for line in where.read_text(encoding="utf-8").splitlines()]
        if len(records) != head["kept"]:
            raise UserError(f"{where} has {len(records)} samples, and {HEAD} says {head['kept']}")
        samples = [read_sample(record, path, arrays) for record in records]
        return _kept(head, records, samples)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{where} cannot be read ({type(error).__name__}: {error}); delete {path}, or copy it again"
        ) from None


def _kept(head: Mapping[str, Any], records: Sequence[Mapping[str, Any]], samples: list[Sample]) -> Kept:
    def column(name: str, kind: Any = np.int64) -> Any:
        return np.array([record[name] for record in records], dtype=kind)

    names, n = tuple(head["rewards"]), len(records)
    divided = any(record["part"] is not None for record in records)
    codes = {name: code for code, name in enumerate(STATUS_NAMES)}
    extra = {name: np.array([record["extra"][name] for record in records], np.float64) for name in records[0]["extra"]}
    return Kept(
        head["step"],
        head["drawn"],
        names,
        tuple(head["rewards"].values()),
        samples,
        column("group"),
        column("part") if divided else None,
        column("member"),
        column("parent"),
        column("place").reshape(n, 2),
        column("values", np.float64).reshape(n, len(names)),
        np.array([[codes[one] for one in record["status"]] for record in records], np.int64).reshape(n, len(names)),
        column("total", np.float64),
        column("advantage", np.float64),
        extra,
        tuple(sorted({name for record in records for name in record["left_out"]})),
    )
