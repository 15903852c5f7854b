"""An order of numbered pieces in text: "3, 1, 2", "[3, 1, 2]", "3 1 2" or "3 -> 1 -> 2"."""

from __future__ import annotations

import re

from mmrl.rewards.verifiable.parse.region import Parsed, answer_text

_ORDER = r"\d{1,6}(?:(?:\s*(?:,|;|->|→|>|-)\s*|\s+)\d{1,6})+"
_WHOLE = re.compile(rf"[\[(]?\s*({_ORDER}|\d{{1,6}})\s*[\])]?\.?")
_LIST = re.compile(rf"[\[(]\s*({_ORDER})\s*[\])]")


def parse_order(text: str, opened: bool = False, repair_tags: bool = False) -> Parsed[tuple[int, ...]]:
    """The non-negative numbers of the answer in order, whether or not they are a permutation.

    Rules: "whole" (the region is an order), "list" (its last list in brackets).
    """
    region = answer_text(text, opened, repair_tags)
    if region.value is None:
        return region.found(None)
    match = _WHOLE.fullmatch(region.value)
    if match is not None:
        return region.found(_numbers(match[1]), "whole")
    lists = _LIST.findall(region.value)
    return region.found(_numbers(lists[-1]) if lists else None, "list", lists[-1] if lists else None)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))
