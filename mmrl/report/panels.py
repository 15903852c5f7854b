"""Which curves a stage's metrics give: panels of curves, nothing where there is no data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from mmrl.report.data import COUNTS, Stage, number
from mmrl.report.measures import Measure, deciding, measures, reward_names

Style = Literal["line", "points", "stack", "raw"]
INTERNAL = ("stage", "step", "total", "time")
PARTS = 8
"""Curves of one panel of parts."""


@dataclass(frozen=True)
class Curve:
    """`y` over `x`; NaN in `y` is a gap. `mark`: drawn with hollow points (a held-out reward); `guide`: a thin dotted
    line to compare with (blind accuracy, chance)."""

    label: str
    x: list[float]
    y: list[float]
    mark: bool = False
    guide: bool = False

    @property
    def drawn(self) -> bool:
        return any(math.isfinite(value) for value in self.y)

    @property
    def constant(self) -> bool:
        return len(set(self.y)) == 1


@dataclass(frozen=True)
class Panel:
    """One small diagram. `share`: the axis counts per cent. `log`: a wide positive range is drawn logarithmically.

    Only the style `line` is smoothed.
    """

    title: str
    curves: list[Curve]
    note: str = ""
    style: Style = "line"
    share: bool = False
    log: bool = False
    wide: bool = False


@dataclass(frozen=True)
class Plan:
    """A panel before its data: `keys` exactly, `prefixes` for families of names."""

    title: str
    keys: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    note: str = ""
    share: bool = False
    log: bool = False
    change: Callable[[float], float] = field(default=lambda value: value)
    labels: tuple[str, ...] = ()


PLANS = (
    Plan("Loss", ("loss",), log=True),
    Plan("Spread inside groups", ("group_std", "reward_std", "group/std"), ("group/",), "std of rewards",
         labels=("inside groups", "all samples", "inside groups")),
    Plan("Groups without signal", ("zero_signal_share", "group/zero_signal_share"), note="all rewards equal",
         share=True, labels=("share", "share")),
    Plan("Mean ratio − 1", ("ratio",), note="0 = on-policy", change=lambda value: value - 1,
         labels=("ratio − 1",)),
    Plan("Largest |ratio − 1|", ("ratio_deviation",), log=True, labels=("largest",)),
    Plan("Clipped steps", ("clip_low", "clip_high", "clip_dual"), note="share of trained steps", share=True,
         labels=("low", "high", "dual")),
    Plan("KL", ("approx_kl", "kl"), ("kl_", "kl/"), labels=("to the rollout policy", "to the reference")),
    Plan("Entropy", ("entropy",), ("entropy_", "entropy/"), "nats per step"),
    Plan("Answer length", ("rollout/tokens",), note="tokens, mean"),
    Plan("Finished answers", ("rollout/finished",), note="ended by themselves", share=True),
    Plan("Gradient norm", ("grad_norm",), note="before clipping", log=True),
    Plan("Learning rate", ("lr",)),
)  # fmt: skip


def panels(stage: Stage, held_out: Iterable[str], unit: Callable[[str], bool] = lambda name: True) -> list[Panel]:
    """Every panel of a stage that has data, rewards and held-out rewards first, time and memory last.

    `unit` says whether a reward lies in [0, 1]; the others have scales of their own and so panels of their own.
    """
    steps = stage.steps
    names = _keys(steps)
    used = {key for key in names if key.endswith(COUNTS)} | {"failed", "skipped", "reward"}
    components = [key for key in names if key.startswith("reward/") and key not in used]
    used |= set(components)
    found = [*_rewards(steps, components, unit), *_evaluations(stage, set(held_out), unit)]
    found.sort(key=lambda panel: not panel.wide)
    for plan in PLANS:
        keys = [*(key for key in plan.keys if key in names)]
        keys += [key for key in names if key.startswith(plan.prefixes or ("\0",)) and key not in {*keys, *used}]
        keys = [key for key in keys if key not in used]
        used |= set(keys)
        found.append(Panel(plan.title, [_planned(steps, plan, key) for key in keys], plan.note, share=plan.share,
                           log=plan.log))  # fmt: skip
    rest = [_curve(steps, key, key) for key in names if key not in used]
    found += [Panel(curve.label, [curve]) for curve in rest if not curve.constant]
    counts = [key for key in names if key.endswith(COUNTS)] or ["failed", "skipped"]
    lost = [_curve(steps, key, key.removeprefix("reward/")) for key in counts]
    found.append(Panel("Samples without a reward", [c for c in lost if any(y > 0 for y in c.y)], "per step", "raw"))
    found += _clock(steps)
    return [kept for panel in found if (kept := _with_data(panel)) is not None]


def constants(stage: Stage) -> list[tuple[str, float]]:
    """Metrics that no panel names and that never changed, with their value."""
    names = _keys(stage.steps)
    planned = {key for plan in PLANS for key in plan.keys}
    prefixes = tuple(prefix for plan in PLANS for prefix in plan.prefixes)
    return [
        (key, curve.y[0])
        for key in names
        if key not in planned
        and not key.startswith(("reward", *prefixes))
        and key not in ("failed", "skipped")
        and (curve := _curve(stage.steps, key, key)).constant
        and curve.drawn
    ]


def _keys(lines: list[dict[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for line in lines for key in line)
    return [key for key in keys if key not in INTERNAL and not key.startswith("eval/")]


def _curve(lines: list[dict[str, Any]], key: str, label: str) -> Curve:
    return Curve(label, [float(line["step"]) for line in lines], [number(line.get(key)) for line in lines])


def _planned(lines: list[dict[str, Any]], plan: Plan, key: str) -> Curve:
    index = plan.keys.index(key) if key in plan.keys else len(plan.labels)
    curve = _curve(lines, key, plan.labels[index] if index < len(plan.labels) else key)
    return Curve(curve.label, curve.x, [plan.change(value) for value in curve.y])


def _rewards(lines: list[dict[str, Any]], keys: list[str], unit: Callable[[str], bool]) -> list[Panel]:
    """The total with the rewards in [0, 1], where it lies there too; every other reward by itself."""
    total = _curve(lines, "reward", "total")
    curves = {key: _curve(lines, key, key.removeprefix("reward/")) for key in keys}
    near = [curve for curve in curves.values() if unit(curve.label)]
    far = [curve for curve in curves.values() if not unit(curve.label)]
    note = "mean over the samples of a step"
    if all(0 <= value <= 1 for value in total.y if math.isfinite(value)) or not near:
        main = [Panel("Reward in training", [total, *near], note, wide=True)]
    else:
        main = [Panel("Reward in training", near, note, wide=True), Panel("Total reward", [total])]
    return main + [Panel(f"Reward {curve.label}", [curve]) for curve in far]


def _evaluations(stage: Stage, held_out: set[str], unit: Callable[[str], bool]) -> list[Panel]:
    near: list[Curve] = []
    far: list[Curve] = []
    guides: list[Curve] = []
    names = reward_names(stage)
    for name in names:
        curve = _curve(stage.evaluations, f"eval/{name}", name)
        label = f"{name} (never trained on)" if name in held_out else name
        (near if unit(name) else far).append(Curve(label, curve.x, curve.y, name in held_out))
    main = deciding(names, held_out)
    if main is not None and unit(main):
        for how, named in (("media", "with media"), ("blind", "blind"), ("chance", "chance")):
            curve = _curve(stage.evaluations, Measure(main, how=how).key, "")
            guides.append(Curve(f"{main}, {named}", curve.x, curve.y, guide=True))
    title, note = "Held-out prompts", "mean reward at each evaluation"
    found = [Panel(title, [*near, *guides], note, "points", wide=True)] if near else []
    found += [Panel(title, [curve], curve.label, "points", wide=not found and len(far) == 1) for curve in far]
    return found + (_by_part(stage, main) if main is not None and len(stage.evaluations) > 2 else [])


def _by_part(stage: Stage, reward: str) -> list[Panel]:
    """A reward over time, a curve per value of a key of the prompts; keys with many values have only their bars."""
    keys: dict[str, list[Curve]] = {}
    for found in measures(stage):
        if found.reward == reward and found.part and not found.how and "," not in found.part:
            key, _, value = found.part.partition("=")
            label = value if key == "kind" else f"{key} {value}"
            keys.setdefault(key, []).append(_curve(stage.evaluations, found.key, label))
    return [Panel(f"Held-out {reward} by {key}", curves, style="points", share=True)
            for key, curves in keys.items() if 1 < len(curves) <= PARTS]  # fmt: skip


def _clock(lines: list[dict[str, Any]]) -> list[Panel]:
    clocks = [{**_time(line), "step": line["step"]} for line in lines]
    phases = list(dict.fromkeys(key for clock in clocks for key in clock if key.startswith("seconds/")))
    stack = [_curve(clocks, key, key.removeprefix("seconds/")) for key in phases]
    if stack:
        sums = [sum(value for value in row if math.isfinite(value)) for row in zip(*(c.y for c in stack), strict=True)]
        whole = _curve(clocks, "seconds", "rest")
        stack.append(Curve("rest", whole.x, [max(0.0, y - s) for y, s in zip(whole.y, sums, strict=True)]))
    return [
        Panel("Seconds per step", stack or [_curve(clocks, "seconds", "all")], style="stack" if stack else "line"),
        Panel("Samples per second", [_curve(clocks, "samples_per_second", "samples/s")]),
        Panel("Peak memory, MB", [_curve(clocks, "memory_mb", "MB")]),
    ]


def _time(line: dict[str, Any]) -> dict[str, Any]:
    clock = line.get("time")
    return clock if isinstance(clock, dict) else {}


def _with_data(panel: Panel) -> Panel | None:
    curves = [curve for curve in panel.curves if curve.drawn]
    if not curves:
        return None
    return Panel(panel.title, curves, panel.note, panel.style, panel.share, panel.log, panel.wide)
