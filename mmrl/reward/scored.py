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
from mmrl.reward.base import Failed, Graded, Reward
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
        raw = _listed(reward.score(samples))
    except Exception as error:
        if reward.scope != "pointwise":  # one by one there is nothing to compare
            line = f"{said} raised {one_line(type(error).__name__, error)}"
            return [f"{line}{place}{line_of(error, __file__)}" for place in where]
        if len(samples) == 1:
            return [f"{said} raised {one_line(type(error).__name__, error)}{where[0]}{line_of(error, __file__)}"]
        return [_score(name, reward, [sample], [place])[0] for sample, place in zip(samples, where, strict=True)]
    if not isinstance(raw, list):
        return [
            f"{said} returned a {type(raw).__name__}{place}; expected a list with one number per sample"
            for place in where
        ]
    if len(raw) != len(samples):
        return [f"{said} returned {len(raw)} scores for {len(samples)} samples{place}" for place in where]
    return [_checked(value, said, reward.limits(), place) for value, place in zip(raw, where, strict=True)]


def _listed(raw: Any) -> Any:
    """Scores as a list where they are a sequence, an array or a tensor of one dimension; anything else unchanged."""
    if isinstance(raw, np.ndarray | torch.Tensor):
        return raw.tolist() if raw.ndim == 1 else raw
    return list(raw) if isinstance(raw, Sequence) and not isinstance(raw, str | bytes) else raw


def _checked(value: Any, who: str, limits: tuple[float | None, float | None], where: str) -> float | str | None:
    said = f"{who} returned"
    if value is None:
        return None
    if isinstance(value, Failed):
        return f"{who}: {one_line(value.reason)}{where}"
    if isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, Real | np.bool_):
        got = f"{one_line(repr(value))} ({type(value).__name__})"
        return f"{said} {got}{where}; expected a number, or None to skip the sample"
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        return f"{said} {number}{where}; expected a finite number, or None to skip the sample"
    low, high = limits
    if (low is not None and number < low - 1e-6) or (high is not None and number > high + 1e-6):
        return f"{said} {number:.6g}{where}; it declares the range {low} to {high}"
    return value if isinstance(value, Graded) else number


def places(samples: Sequence[Sample]) -> list[str]:
    """' on sample 2 of prompt 'id'' for every sample: its number among the samples of that prompt, from 0."""
    seen: Counter[str] = Counter()
    found = []
    for sample in samples:
        found.append(f" on sample {seen[sample.prompt.id]} of prompt '{sample.prompt.id}'")
        seen[sample.prompt.id] += 1
    return found
