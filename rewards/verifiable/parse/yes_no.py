"""Yes or no, as whole words: "no" in "know" is no answer."""

from __future__ import annotations

import re
from typing import Literal

from mmrl.rewards.verifiable.parse.region import Parsed, answer_text

_WORD = re.compile(r"(?<![\w'’-])(yes|no)(?![\w'’-])", re.IGNORECASE)
_FIRST = re.compile(r"\W*(yes|no)\s*(?:[,.!;:\n]|\W*$)", re.IGNORECASE)


def parse_yes_no(text: str, opened: bool = False, repair_tags: bool = False) -> Parsed[Literal["yes", "no"]]:
    """Rules: "first" (the region starts with the word and a stop), "only" (one of the two words occurs, the other does not)."""
    region = answer_text(text, opened, repair_tags)
    if region.value is None:
        return region.found(None)
    first = _FIRST.match(region.value[:200])
    if first is not None:
        return region.found(_said(first[1]), "first", first[0])
    words = {word.lower() for word in _WORD.findall(region.value)}
    return region.found(_said(words.pop()) if len(words) == 1 else None, "only")


def _said(word: str) -> Literal["yes", "no"]:
    return "yes" if word.lower() == "yes" else "no"
