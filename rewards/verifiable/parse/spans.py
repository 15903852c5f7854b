"""Times and spans of time in text: seconds, mm:ss and h:mm:ss.

JSON first ([start, end], a list of such pairs, or objects with "start" and "end"), then "24.3 - 30.4", "3 to 7",
"between 4 and 9 seconds", then "starts at 12.5 ... ends at 14". Spans are kept as they are written, also end first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from mmrl.rewards.verifiable.parse.boxes import json_values
from mmrl.rewards.verifiable.parse.region import Parsed, answer_text, normalise

Span = tuple[float, float]

_TIME = r"(?<![\d.:])(\d{1,2}:[0-5]?\d:[0-5]\d(?:\.\d+)?|\d{1,3}:[0-5]\d(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?![\d:]|\.\d)"
_SECONDS = r"\s*(?:seconds?|secs?|s)?\b"
_PAIR = re.compile(rf"{_TIME}{_SECONDS}\s*(?:-|–|—|\bto\b|\band\b)\s*{_TIME}", re.IGNORECASE)
_START_END = re.compile(
    rf"\bstart\w*(?:\s+(?:time|at|is|from))*\s*:?\s*{_TIME}.{{0,80}}?\bend\w*(?:\s+(?:time|at|is))*\s*:?\s*{_TIME}",
    re.IGNORECASE | re.DOTALL,
)
_NOTHING = ("none", "no", "never", "not present", "n/a")


def read_time(text: str) -> float | None:
    """Seconds of "12.5", "0:10" or "1:02:03"; None for anything else."""
    if not re.fullmatch(_TIME, text.strip()):
        return None
    seconds = 0.0
    for part in text.strip().split(":"):
        seconds = 60 * seconds + float(part)
    return seconds if math.isfinite(seconds) else None


def parse_spans(text: str, opened: bool = False, repair_tags: bool = False) -> Parsed[tuple[Span, ...]]:
    """Every span of the answer in seconds, in order, as it is written; () where it says that there is none.

    Rules: "json", "pair", "start_end", "none".
    """
    region = answer_text(text, opened, repair_tags)
    if region.value is None:
        return region.found(None)
    values = list(json_values(region.value))
    spans = next((found for value in reversed(values) if (found := _spans(value)) is not None), None)
    if spans is not None:
        return region.found(spans, "json")
    for rule, pattern in (("pair", _PAIR), ("start_end", _START_END)):
        pairs = [(read_time(match[1]), read_time(match[2])) for match in pattern.finditer(region.value)]
        if pairs:
            found = tuple((a, b) for a, b in pairs if a is not None and b is not None)
            return region.found(found if len(found) == len(pairs) else None, rule)
    return region.found(() if normalise(region.value) in _NOTHING else None, "none")


def gold_spans(value: Any) -> tuple[Span, ...]:
    """A target as spans: [start, end], or a list of such pairs (may be empty). Raises ValueError for anything else."""
    spans = _spans(value)
    if spans is None or any(a > b for a, b in spans):
        raise ValueError(f"the target is {value!r}; expected [start, end] in seconds, start first, or a list of such")
    return spans


def _spans(value: Any) -> tuple[Span, ...] | None:
    if (one := _span(value)) is not None:
        return (one,)
    if not isinstance(value, list | tuple):
        return None
    found = [span for item in value if (span := _span(item)) is not None]
    return tuple(found) if len(found) == len(value) else None


def _span(value: Any) -> Span | None:
    if isinstance(value, dict):
        value = [value.get("start"), value.get("end")]
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        return None
    start, end = (_seconds(item) for item in value)
    return None if start is None or end is None else (start, end)


def _seconds(value: Any) -> float | None:
    if isinstance(value, str):
        return read_time(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9:
        return float(value)
    return None
