"""Numbers that can be added over chunks and ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

Metric: TypeAlias = tuple[float, float] | tuple[Literal["sum", "max"], float]
"""`(sum, count)` of a mean, `("sum", value)` or `("max", value)`."""

Metrics: TypeAlias = dict[str, Metric]


def merge(a: Mapping[str, Metric], b: Mapping[str, Metric]) -> Metrics:
    """Both sets of numbers as one; the order does not matter. A name must be of one sort on both sides."""
    merged = dict(a)
    for name, metric in b.items():
        merged[name] = _add(merged[name], metric) if name in merged else metric
    return merged


def _add(a: Metric, b: Metric) -> Metric:
    if a[0] == "max":
        return "max", max(a[1], b[1])
    if a[0] == "sum":
        return "sum", a[1] + b[1]
    return a[0] + float(b[0]), a[1] + b[1]


def finish(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Plain values; a mean over nothing is left out."""
    values: dict[str, float] = {}
    for name, (first, second) in metrics.items():
        if isinstance(first, str):
            values[name] = second
        elif second:
            values[name] = first / second
    return values
