"""What judges say, read strictly: a verdict that cannot be read is None, never a number. Pure functions of texts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

YES = ("yes", "true", "1")
NO = ("no", "false", "0")
BLANKS = " \t\r\n\u2581\u0120\u010a"
"""What tokenizers write before, or for, a blank or a line end."""
UNSEEN = 0.01
"""The most that tokens which are not listed may move a share."""
NUMBER = r"[-+]?[0-9]+(?:\.[0-9]+)?"
ENDS = r"(?![\w%]|[.,]\d|[ \t]*[-\u2013][ \t]*\d|\s*(?:/|out\s+of)(?!\s*5\b))"
"""After a number from 1 to 5: no further digits, no other scale, no span (but the next line may be one of a list)."""
AXIS = re.compile(rf"(\w+)\s+score\s*(?:\(1-5\))?\s*:\s*({NUMBER}){ENDS}", re.IGNORECASE)
FINAL = re.compile(rf"final\s+score\s*:\s*({NUMBER}){ENDS}", re.IGNORECASE)
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)
BETTER = re.compile(r"\b(?:edited\s+)?(?:image|video|candidate)\s*([12])\b", re.IGNORECASE)
WORSE = re.compile(r"\b(?:worse|inferior|loses|not|cannot)\b|n['\u2019]t\b", re.IGNORECASE)
TIE = re.compile(r"\b(?:tie|equal|equally good|both|neither)\b", re.IGNORECASE)
SHARES = re.compile(
    rf"(\w+)\s+score\s*:\s*(?:image|video)\s*1\s*:\s*({NUMBER})\s+(?:image|video)\s*2\s*:\s*({NUMBER})(?![\w%]|\.\d)",
    re.IGNORECASE,
)
OBJECT = re.compile(r'\{\s*"')


def spoken(text: str) -> str:
    """What follows the thoughts of a text that begins with `<think>`; every other text as it is."""
    return text.partition("</think>")[2] if text.lstrip().startswith("<think>") else text


def json_object(text: str) -> dict[str, Any] | None:
    """The last JSON object in a text: bare, fenced, between other words, after thoughts, or a JSON text of one.

    None without one; and where it is not plain which is the judge's own, as one begins and cannot be read, has a name twice, or
    two say different things under one name: a judge that quotes what it judges must not lend it its voice.
    """
    text = spoken(text)
    decoder = json.JSONDecoder(object_pairs_hook=_named_once)
    found: list[dict[str, Any]] = []
    place = 0
    while (place := text.find("{", place)) != -1:
        try:
            value, place = decoder.raw_decode(text, place)
            found.append(value)
        except (ValueError, RecursionError):
            if OBJECT.match(text, place):
                return None
            place += 1
    if not found:
        try:
            inner = json.loads(text)
        except (ValueError, RecursionError):
            return None
        return json_object(inner) if isinstance(inner, str) else None
    last = found[-1]
    return None if any(one[name] != last[name] for one in found for name in one.keys() & last.keys()) else last


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name that comes twice")
    return found


def number(value: Any, low: float, high: float) -> float | None:
    """A finite number (or a plain text of one) between `low` and `high`; None for anything else."""
    if isinstance(value, str):
        value = value.strip() if re.fullmatch(NUMBER, value.strip()) else None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) and low <= found <= high else None


def field(text: str, name: str, low: float, high: float) -> float | None:
    """The number `name` of the JSON object in a text, if it lies between `low` and `high`."""
    found = json_object(text)
    return None if found is None else number(found.get(name), low, high)


def yes_share(first: Mapping[str, float]) -> float | None:
    """P(yes) / (P(yes) + P(no)) from the log-probs of the likeliest first tokens, in whatever case and with blanks around them.

    None where these are less than half of what could come first (the judge says something else), or where tokens that are not
    listed, each at most as likely as the last that is, could move the share by more than `UNSEEN`.
    """
    said = [(token.strip(BLANKS).casefold(), math.exp(value)) for token, value in first.items()]
    yes, no = (sum(p for token, p in said if token in words) for words in (YES, NO))
    if yes + no < 0.5:
        return None
    unseen = min(max(0.0, 1.0 - sum(p for _, p in said)), min(p for _, p in said))
    return yes / (yes + no) if unseen <= UNSEEN * (yes + no) else None


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


def shares(text: str, names: Sequence[str]) -> float | None:
    """The mean share of the first of two in `NAME Score: Image 1: x Image 2: y` over `names` (UnifiedReward 2.0, pairs); None unless each is there
    once and its two numbers, from 0 to 1, sum to 1 within 0.01."""
    found = [(name.lower(), number(first, 0, 1), number(second, 0, 1)) for name, first, second in SHARES.findall(text)]
    own: list[float] = []
    for name in names:
        pairs = [(first, second) for axis, first, second in found if axis == name.lower()]
        first, second = pairs[0] if len(pairs) == 1 else (None, None)
        if first is None or second is None or abs(first + second - 1) > 0.01:
            return None
        own.append(first / (first + second))
    return sum(own) / len(own)


def winner(text: str) -> int | None:
    """Who is better in a text: 1, 2, 0 for a tie; None where it names both, or nobody, or says who is not."""
    named = {int(one) for one in BETTER.findall(text)}
    if WORSE.search(text):
        return None
    if len(named) == 1:
        return named.pop()
    return 0 if not named and TIE.search(text) else None


def answered_winner(text: str) -> int | None:
    """The winner inside `<answer>`, after the thoughts of a text (UnifiedReward-Think); None where several do not agree."""
    found = {winner(one) for one in ANSWER.findall(spoken(text))}
    return found.pop() if len(found) == 1 else None


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
    overall = None if found is None else winner(str(found.get("winner", "")))
    if found is None or overall is None:
        return None
    categories = found.get("categories")
    own: dict[str, int] = {}
    for place, one in enumerate(categories if isinstance(categories, list) else []):
        if isinstance(one, dict) and (who := winner(str(one.get("cat_winner", "")))) is not None:
            name = str(one.get("name", place))
            own[f"{name} {place}" if name in own else name] = who
    return overall, own
