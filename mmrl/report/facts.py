"""What a report says in words and tables: status, stages, failures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mmrl.report.data import COUNTS, RunData, Stage, mapping, number


@dataclass(frozen=True)
class Status:
    """`finished`, and the line that says how far an unfinished run has come."""

    finished: bool
    text: str


@dataclass(frozen=True)
class StageRow:
    """One line of the table of stages, ready to print; "–" where nothing is known."""

    name: str
    kind: str
    steps: str
    seconds: str
    training: str
    samples: str
    rate: str


def title(data: RunData) -> str:
    """The run's name, else the name of its method, else that of its folder."""
    name = mapping(data.config, "run").get("name") or mapping(data.config, "method").get("name")
    path = data.path.resolve()
    return str(name or (f"{path.parent.name}/{path.name}" if path.name.isdigit() else path.name))


def subtitle(data: RunData) -> list[str]:
    """What was trained, in a few short pieces."""
    pieces = [str(mapping(data.config, "policy").get("name") or "")]
    for stage in data.stages:
        section = mapping(data.config, "stages", stage.name)
        piece = f"{stage.name}: {_count(stage.planned, 'step')}" if stage.planned else stage.name
        if stage.kind == "rl":
            objective = mapping(section, "objective")
            parts = [mapping(objective, part).get("name") for part in ("advantage", "surrogate")]
            piece += f" of {section.get('prompts_per_step')} prompts × {section.get('group_size')} samples, "
            piece += " advantage, ".join(str(part) for part in parts if part)
        elif stage.kind:
            piece += f", {stage.kind}"
        pieces.append(piece)
    seed = mapping(data.config, "run").get("seed")
    return [piece for piece in [*pieces, "" if seed is None else f"seed {seed}"] if piece]


def status(data: RunData) -> Status:
    """Finished if summary.json is there; else the last logged step."""
    if data.summary is not None:
        return Status(True, "finished")
    for stage in reversed(data.stages):
        if stage.steps:
            of = f" of {stage.planned}" if stage.planned else ""
            return Status(False, f"not finished: step {stage.steps[-1]['step']}{of} of stage {stage.name}")
    return Status(False, "not finished: no step was logged")


def stage_rows(data: RunData) -> list[StageRow]:
    """Per stage: steps, seconds, samples and samples per second of training; the summary's numbers where it has them."""
    return [_row(data, stage) for stage in data.stages]


def _row(data: RunData, stage: Stage) -> StageRow:
    done = mapping(data.summary, "stages", stage.name)
    clocks = [mapping(line.get("time")) for line in stage.steps]
    training = sum(s for clock in clocks if math.isfinite(s := number(clock.get("seconds"))))
    samples = sum(
        s
        for clock in clocks
        if math.isfinite(s := number(clock.get("seconds")) * number(clock.get("samples_per_second")))
    )
    steps = len(stage.steps)
    return StageRow(
        name=stage.name,
        kind=stage.kind,
        steps=f"{steps:,}" + (f" of {stage.planned:,}" if stage.planned and stage.planned != steps else ""),
        seconds=seconds(done.get("seconds")),
        training=seconds(done.get("training_seconds", training or None)),
        samples=_integer(done.get("samples", round(samples) or None)),
        rate=_decimal(done.get("samples_per_second", samples / training if training else None)),
    )


def failures(data: RunData) -> list[tuple[str, str]]:
    """(what, how often) for everything that did not go as it should; empty for a clean run."""
    lines = [line for stage in data.stages for line in stage.steps]
    found: list[tuple[str, float]] = []
    for key, words in (("failed", "samples with a failed reward"), ("skipped", "samples with a skipped reward")):
        logged = sum(value for line in lines if math.isfinite(value := number(line.get(key))))
        found.append((words, number(mapping(data.summary).get(f"{key}_rewards", logged))))
    found.append(
        ("optimizer steps skipped (non-finite gradient)", number(mapping(data.summary).get("skipped_updates", 0)))
    )
    totals: dict[str, float] = {}
    for line in [*lines, *(line for stage in data.stages for line in stage.evaluations if line not in lines)]:
        for key, value in line.items():
            if key.endswith(COUNTS) and math.isfinite(number(value)):
                totals[key] = totals.get(key, 0.0) + number(value)
    for key, total in totals.items():
        kind, _, rest = key.partition("/")
        name, _, how = rest.rpartition("/")
        found.append((f"reward {name} {how} in {'evaluation' if kind == 'eval' else 'training'}", total))
    broken = sum(_not_finite(value) for line in lines for value in line.values())
    found.append(("logged values that are not finite", float(broken)))
    return [(what, f"{count:,.0f}") for what, count in found if count > 0]


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def seconds(value: Any) -> str:
    """`74.2` -> `1 min 14 s`."""
    count = number(value)
    if math.isnan(count):
        return "–"
    if count < 60:
        return f"{count:.1f} s"
    minutes, rest = divmod(round(count), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _count(count: int, word: str) -> str:
    return f"{count:,} {word}" + ("" if count == 1 else "s")


def _integer(value: Any) -> str:
    return "–" if math.isnan(number(value)) else f"{number(value):,.0f}"


def _decimal(value: Any) -> str:
    count = number(value)
    return "–" if math.isnan(count) else f"{count:,.1f}" if count < 100 else f"{count:,.0f}"
