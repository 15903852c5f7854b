"""How right a stage's answers were before and after it: over all held-out prompts, by kind, by level ..."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mmrl.report.change import in_unit
from mmrl.report.data import RunData, Stage, number
from mmrl.report.measures import Measure, deciding, measures, reward_names


@dataclass(frozen=True)
class Bars:
    """One group of bars, of the same prompts: shares in [0, 1], NaN where nothing was measured. `blind`: after the stage,
    without looking."""

    label: str
    before: float
    after: float
    blind: float
    chance: float


@dataclass(frozen=True)
class Breakdown:
    """A reward of a stage, one group of bars per value of a key of the prompts (`title` names the key)."""

    stage: str
    reward: str
    title: str
    rows: list[Bars]


def breakdowns(data: RunData) -> list[Breakdown]:
    """One per stage and key, for stages whose evaluations have parts, a blind look or a chance level."""
    return [found for stage in data.stages for found in _of_stage(data, stage)]


def _of_stage(data: RunData, stage: Stage) -> list[Breakdown]:
    reward = deciding(reward_names(stage), data.held_out)
    if reward is None or not in_unit(data, reward):
        return []
    own = [found for found in measures(stage) if found.reward == reward]
    if all(not found.part and not found.how for found in own):
        return []
    keys: dict[tuple[str, ...], list[str]] = {}
    for part in dict.fromkeys(found.part for found in own if found.part):
        keys.setdefault(tuple(piece.partition("=")[0] for piece in part.split(",")), []).append(part)
    whole = _bars(stage, reward, "", "all prompts")
    rows = {key: [bars for part in parts for bars in _bars(stage, reward, part, _label(part))]
            for key, parts in keys.items()}  # fmt: skip
    if not rows:
        return [Breakdown(stage.name, reward, "", whole)]
    return [
        Breakdown(stage.name, reward, "by " + " and ".join(key), [*([] if number else whole), *found])
        for number, (key, found) in enumerate(rows.items())
    ]


def _bars(stage: Stage, reward: str, part: str, label: str) -> list[Bars]:
    """Of the prompts of a part; where some have no media, those that have some stand once more, beside what they earn unseen."""
    first, last = stage.evaluations[0], stage.evaluations[-1]

    def value(line: dict[str, Any], how: str) -> float:
        return number(line.get(Measure(reward, part, how).key))

    def bars(label: str, how: str, blind: float, chance: float) -> Bars:
        return Bars(label, value(first, how), math.nan if first is last else value(last, how), blind, chance)

    blind, chance = value(last, "blind"), value(last, "chance")
    if math.isnan(value(last, "media")):
        return [bars(label, "", blind, chance)]
    return [bars(label, "", math.nan, chance), bars(f"{label}, with media", "media", blind, math.nan)]


def _label(part: str) -> str:
    """`kind=count,level=1` -> `count, level 1`."""
    pieces = [piece.partition("=") for piece in part.split(",")]
    return ", ".join(value if key == "kind" else f"{key} {value}" for key, _, value in pieces)
