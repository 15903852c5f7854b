r"""The formula that a text gives as its answer, as text; what it means is for a verifier to find out.

boxed    the last box of the region
phrase   behind the last "answer is", "answer:" or "answer ="
answer   the answer block
dollars  the only formula between dollar signs
whole    the untagged text itself, if it is one line with at most one word in it
"""

from __future__ import annotations

import re

from mmrl.rewards.verifiable.parse.region import Parsed, answer_text

_PHRASE = re.compile(r"\banswer[*_]*\s*(?:\bis\b|:|=)[\s:*_]*([^\n]{1,300})", re.IGNORECASE)
_TAIL = re.compile(r"\.(?:\s|$)|,?\s+(?:because|since|which|so|as)\b", re.IGNORECASE)
_DOLLARS = re.compile(r"(?<!\\)\$\$?([^$\n]{1,300})(?<!\\)\$\$?")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_LONGEST = 300


def parse_formula(text: str, opened: bool = False, repair_tags: bool = False) -> Parsed[str]:
    """The formula in LaTeX or plain writing, without dollar signs around it."""
    region = answer_text(text, opened, repair_tags)
    said = region.value
    if said is None or region.rule == "boxed":
        return region
    phrases = _PHRASE.findall(said[-20 * _LONGEST :])
    if phrases:
        return region.found(_bare(_TAIL.split(phrases[-1], maxsplit=1)[0]) or None, "phrase", phrases[-1])
    if not region.untagged:
        return region.found(_bare(said) or None, "answer")
    formulas = {formula.strip() for formula in _DOLLARS.findall(said)}
    if len(formulas) == 1:
        return region.found(formulas.pop() or None, "dollars")
    if len(said) <= _LONGEST and "\n" not in said and len(_WORD.findall(said)) <= 1:
        return region.found(_bare(said) or None, "whole")
    return region.found(None)


def _bare(text: str) -> str:
    """Without blanks, bold, a full stop and dollar signs around it."""
    text = text.strip(" *\n").removesuffix(".").strip()
    match = _DOLLARS.fullmatch(text)
    return (match[1] if match else text).strip()
