"""Spans of time: how an answer names one, and how much two of them overlap."""

from __future__ import annotations

import re

_TIME = r"\d{1,4}(?::\d{1,2}){0,2}(?:\.\d{1,6})?"
_UNIT = r"\s*(?:s|sec|secs|seconds?)?"
_SPAN = re.compile(rf"(?:from|between)?\s*({_TIME}){_UNIT}\s*(?:-|–|—|to|and|,)\s*({_TIME}){_UNIT}", re.ASCII)

Span = tuple[float, float]


def read_span(answer: str) -> Span | None:
    """Start and end in seconds of an answer that is a span and nothing else: "2.0-3.5", "from 0:10 to 0:25", "[2, 3.5]".

    Times are seconds, mm:ss or h:mm:ss. The order is kept as written; None for anything else.
    """
    said = " ".join(answer.casefold().split()).removesuffix(".").strip()
    if said[:1] + said[-1:] in ("[]", "()"):
        said = said[1:-1].strip()
    found = _SPAN.fullmatch(said)
    return None if found is None else (_seconds(found.group(1)), _seconds(found.group(2)))


def span_iou(a: Span, b: Span) -> float:
    """|a ∩ b| / |a ∪ b| of two spans (start, end); 0 where one is empty or ends before it starts."""
    if a[0] >= a[1] or b[0] >= b[1]:
        return 0.0
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return min(1.0, shared / ((a[1] - a[0]) + (b[1] - b[0]) - shared))


def show_time(seconds: float) -> str:
    """Seconds with one decimal, or two where one is not enough: "2.0", "2.25"."""
    return f"{seconds:.2f}".removesuffix("0")


def _seconds(time: str) -> float:
    total = 0.0
    for part in time.split(":"):
        total = total * 60 + float(part)
    return total
