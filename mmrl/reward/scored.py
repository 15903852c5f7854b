"""One reward asked about many samples: what it says is checked, and what it raises is a failure of the samples it is about."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from numbers import Real
from typing import Any

import numpy as np
import torch

from mmrl.errors import line_of, one_line
from mmrl.reward.base import Failed, Graded, Reward, bounds, staying, worded
from mmrl.rollout import Sample


def outcomes(
    name: str,
    reward: Reward,
    samples: Sequence[Sample],
    rows: list[int],
    where: Sequence[str],
    group: Sequence[int] | None,
) -> list[tuple[int, float | str | None]]:
    """The rows and what `_score` says of them: all at once, or group by group."""
    parts = [rows]
    if reward.scope != "pointwise":
        assert group is not None
        keys = dict.fromkeys(int(group[row]) for row in rows)
        parts = [[row for row in rows if int(group[row]) == key] for key in keys]

    def scored(part: list[int]) -> list[float | str | None]:
        return _score(name, reward, [samples[row] for row in part], [where[row] for row in part])

    threads = min(reward.at_once(), len(parts))
    with ThreadPoolExecutor(threads) if threads > 1 else nullcontext() as pool:
        told = map(scored, parts) if pool is None else pool.map(scored, parts)
        found = [pair for part, own in zip(parts, told, strict=True) for pair in zip(part, own, strict=True)]
    return sorted(found, key=lambda pair: pair[0])


def _score(name: str, reward: Reward, samples: list[Sample], where: list[str]) -> list[float | str | None]:
    """Per sample a finite number, None (skipped) or the line that says why it failed."""
    if not samples:
        return []
    said = f"reward '{name}'"
    try:
        with staying():
            raw, limits = listed(reward.score(samples)), bounds(reward.limits())
    except Exception as error:
        if reward.scope != "pointwise":  # one by one there is nothing to compare
            return [f"{said} raised {worded(error)}{place}{line_of(error, __file__)}" for place in where]
        if len(samples) == 1:
            return [f"{said} raised {worded(error)}{where[0]}{line_of(error, __file__)}"]
        return [_score(name, reward, [sample], [place])[0] for sample, place in zip(samples, where, strict=True)]
    if not isinstance(raw, list):
        return [f"{said} returned a {type(raw).__name__}; expected a list with one number per sample" for _ in where]
    if len(raw) != len(samples):
        return [f"{said} returned {len(raw)} scores for {len(samples)} samples; expected one each" for _ in where]
    return [_checked(value, said, limits, place) for value, place in zip(raw, where, strict=True)]


def listed(raw: Any) -> Any:
    """Scores as a list where they are a sequence, an array or a tensor of one dimension; anything else unchanged."""
    if isinstance(raw, np.ndarray | torch.Tensor):
        return raw.tolist() if raw.ndim == 1 else raw
    return list(raw) if isinstance(raw, Sequence) and not isinstance(raw, str | bytes) else raw


def _checked(value: Any, who: str, limits: tuple[float | None, float | None], where: str) -> float | str | None:
    said = f"{who} returned"
    if value is None or value is np.ma.masked:
        return None
    if isinstance(value, Failed):
        return f"{who}: {one_line(value.reason)}{where}"
    number = number_of(value)
    if number is None:
        return f"{said} {_shown(value)} ({type(value).__name__}){where}; expected a number, or None to skip the sample"
    if not math.isfinite(number):
        return f"{said} {number}{where}; expected a finite number, or None to skip the sample"
    low, high = limits
    if (low is not None and number < low - 1e-6) or (high is not None and number > high + 1e-6):
        return f"{said} {number:.6g}{where}; it declares the range {low} to {high}"
    return value if isinstance(value, Graded) else number


def number_of(value: Any) -> float | None:
    """A number, also as a tensor or an array without dimensions; infinity for one that no float holds, None for what is none."""
    try:
        if isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 0 and value is not np.ma.masked:
            value = value.item()
        return float(value) if isinstance(value, Real | np.bool_) else None
    except OverflowError:
        return math.inf
    except Exception:  # a number that cannot say which one is none
        return None


def _shown(value: Any) -> str:
    """One line of a value, also where it cannot say what it is."""
    try:
        return one_line(repr(value))
    except Exception:
        return "?"


def printable(line: str) -> str:
    """`line` in characters that terminals and files hold; others (line ends, controls, halves of pairs) become escapes."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in line)


def places(samples: Sequence[Sample]) -> list[str]:
    """' on sample 2 of prompt 'id'' for every sample: its number among the samples of that prompt, from 0."""
    seen: Counter[str] = Counter()
    found = []
    for sample in samples:
        found.append(f" on sample {seen[sample.prompt.id]} of prompt '{sample.prompt.id}'")
        seen[sample.prompt.id] += 1
    return found
