"""What judges say, read strictly: a verdict that cannot be read is None, never a number. Pure functions of texts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

YES = ("yes", "Yes", "YES", " yes", " Yes", "1", "true", "True")
NO = ("no", "No", "NO", " no", " No", "0", "false", "False")
NUMBER = r"[-+]?\d+(?:\.\d+)?"
AXIS = re.compile(rf"(\w+)\s+score\s*(?:\(1-5\))?\s*:\s*({NUMBER})(?![\d.])", re.IGNORECASE)
FINAL = re.compile(rf"final\s+score\s*:\s*({NUMBER})(?![\d.])", re.IGNORECASE)
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)
BETTER = re.compile(r"\b(?:edited\s+)?(?:image|video|candidate)\s*([12])\b", re.IGNORECASE)
TIE = re.compile(r"\b(?:tie|equal|equally good|both|neither)\b", re.IGNORECASE)


def json_object(text: str) -> dict[str, Any] | None:
    """The last JSON object in a text: bare, fenced, between other words, or a JSON text of one; None without one."""
    decoder = json.JSONDecoder()
    found: dict[str, Any] | None = None
    place = 0
    while (place := text.find("{", place)) != -1:
        try:
            value, end = decoder.raw_decode(text, place)
        except (json.JSONDecodeError, RecursionError):
            place += 1
            continue
        found, place = (value if isinstance(value, dict) else found), end
    if found is None:
        try:
            inner = json.loads(text)
        except (json.JSONDecodeError, RecursionError):
            return None
        return json_object(inner) if isinstance(inner, str) else None
    return found


def number(value: Any, low: float, high: float) -> float | None:
    """A finite number (or a text of one) between `low` and `high`; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) and low <= found <= high else None


def field(text: str, name: str, low: float, high: float) -> float | None:
    """The number `name` of the JSON object in a text, if it lies between `low` and `high`."""
    found = json_object(text)
    return None if found is None else number(found.get(name), low, high)


def yes_share(first: Mapping[str, float]) -> float | None:
    """P(yes) / (P(yes) + P(no)) from the log-probs of the likeliest first tokens; None where neither is among them."""
    yes, no = (sum(math.exp(first[word]) for word in words if word in first) for words in (YES, NO))
    return yes / (yes + no) if yes + no > 0 else None


def final_score(text: str, low: float = 1.0, high: float = 5.0) -> float | None:
    """The last `Final Score: x` of a text (UnifiedReward 1.5), x in [low, high]."""
    found = FINAL.findall(text)
    return number(found[-1], low, high) if found else None


def axes(text: str, names: Sequence[str], low: float = 1.0, high: float = 5.0) -> dict[str, float] | None:
    """The last `NAME Score (1-5): x` of each of `names` (UnifiedReward 2.0); None unless all are there and in range."""
    found = {name.lower(): value for name, value in AXIS.findall(text)}
    values = {name: number(found.get(name.lower()), low, high) for name in names}
    if any(value is None for value in values.values()):
        return None
    return {name: value for name, value in values.items() if value is not None}


def winner(text: str) -> int | None:
    """Who is better in a text: 1, 2, 0 for a tie; None where it names both, or nobody."""
    named = {int(one) for one in BETTER.findall(text)}
    if len(named) == 1:
        return named.pop()
    return 0 if not named and TIE.search(text) else None


def answered_winner(text: str) -> int | None:
    """The winner inside the last `<answer>` of a text (UnifiedReward-Think)."""
    found = ANSWER.findall(text)
    return winner(found[-1]) if found else None


def edit_scores(text: str, high: float = 25.0) -> tuple[float, float] | None:
    """The two numbers of `"score": [success, overediting]` (UnifiedReward-Edit), each from 0 to `high`."""
    found = json_object(text)
    pair = None if found is None else found.get("score")
    if not isinstance(pair, list) or len(pair) != 2:
        return None
    first, second = (number(value, 0, high) for value in pair)
    return None if first is None or second is None else (first, second)


def flex(text: str) -> tuple[int, dict[str, int]] | None:
    """Winner and winner per category of UnifiedReward-Flex's JSON; None where the winner cannot be read."""
    found = json_object(text)
    if found is None or (overall := winner(str(found.get("winner", "")))) is None:
        return None
    categories = found.get("categories")
    own: dict[str, int] = {}
    for one in categories if isinstance(categories, list) else []:
        if isinstance(one, dict) and (who := winner(str(one.get("cat_winner", "")))) is not None:
            own[str(one.get("name", len(own)))] = who
    return overall, own
