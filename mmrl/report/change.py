"""What changed on held-out prompts: every reward before and after a stage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mmrl.report.data import RunData, Stage, mapping, number
from mmrl.report.measures import Measure, reward_names


@dataclass(frozen=True)
class Change:
    """One reward of one stage. `unit`: all its values seen lie in [0, 1], so a difference is given in points."""

    name: str
    held_out: bool
    unit: bool
    before: float
    after: float
    media: tuple[float, float] = (math.nan, math.nan)
    """Before and after, on the prompts with media, where others have none."""
    blind: tuple[float, float] = (math.nan, math.nan)
    """Before and after, prompts with media asked without looking at it."""
    chance: float = math.nan
    """What guesses earn."""

    @property
    def difference(self) -> float:
        return self.after - self.before

    @property
    def direction(self) -> str:
        """`up`, `down` or `level`, as the shown digits say."""
        if math.isnan(self.difference) or self.shown_difference.startswith("±"):
            return "level"
        return "up" if self.difference > 0 else "down"

    @property
    def shown_difference(self) -> str:
        if math.isnan(self.difference):
            return "–"
        shown = f"{100 * self.difference:+.1f} points" if self.unit else f"{self.difference:+.3g}"
        if not any(digit in shown for digit in "123456789"):
            shown = f"±{shown[1:]}"
        return shown.replace("-", "−")

    def shown(self, value: float) -> str:
        """A level: per cent for a reward in [0, 1], else the number."""
        if math.isnan(value):
            return "not scored"
        return f"{100 * value:.1f} %" if self.unit else f"{value:.4g}".replace("-", "−")

    @property
    def beside(self) -> str:
        """Blind accuracy, with what it is to be compared with, and chance, where there are any."""
        said = [
            f"{name} " + " → ".join(self.shown(value) for value in pair)
            for name, pair in (("with media", self.media), ("blind", self.blind))
            if not all(math.isnan(value) for value in pair)
        ]
        if not math.isnan(self.chance):
            said.append(f"chance {self.shown(self.chance)}")
        return ", ".join(said)


@dataclass(frozen=True)
class StageChange:
    """The changes of a stage; `until` says which evaluation is the later one, `samples` its number of samples."""

    stage: str
    until: str
    samples: int | None
    changes: list[Change]


def changes(data: RunData) -> list[StageChange]:
    """One entry per stage with a first and a later evaluation, held-out rewards first."""
    return [found for stage in data.stages if (found := _stage_change(data, stage)) is not None]


def _stage_change(data: RunData, stage: Stage) -> StageChange | None:
    if len(stage.evaluations) < 2:
        return None
    first, last = stage.evaluations[0], stage.evaluations[-1]
    names = [name for name in reward_names(stage) if not math.isnan(number(last.get(f"eval/{name}")))]
    untrained = data.held_out

    def both(name: str, how: str) -> tuple[float, float]:
        key = Measure(name, how=how).key
        return number(first.get(key)), number(last.get(key))

    found = [
        Change(
            name=name,
            held_out=name in untrained,
            unit=in_unit(data, name),
            before=number(first.get(f"eval/{name}")),
            after=number(last.get(f"eval/{name}")),
            media=both(name, "media"),
            blind=both(name, "blind"),
            chance=number(last.get(Measure(name, how="chance").key)),
        )
        for name in sorted(names, key=lambda name: (name not in untrained, names.index(name)))
    ]
    finished = stage.planned is not None and last["step"] >= stage.planned
    until = "after it" if finished else f"at its step {last['step']}"
    samples = mapping(data.summary, "stages", stage.name, "after").get("samples")
    return StageChange(stage.name, until, samples if isinstance(samples, int) else None, found) if found else None


def in_unit(data: RunData, name: str) -> bool:
    """Whether every value of a reward that the run has logged, of single samples too, lies in [0, 1]."""
    values = [number(line.get(key)) for stage in data.stages for line in [*stage.steps, *stage.evaluations]
              for key in (f"reward/{name}", f"eval/{name}")]  # fmt: skip
    singles: list[Any] = [shot.rewards.get(name) for sheet in data.sheets for shot in sheet.shots]
    values += [value for value in singles if value is not None]
    return all(0 <= value <= 1 for value in values if not math.isnan(value))
