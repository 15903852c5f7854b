"""What a text answers: the last <answer> block outside the reasoning, and how numbers, lists and words in it are read."""

from __future__ import annotations

import re
from collections.abc import Collection

_BLOCK = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.IGNORECASE | re.DOTALL)
_CLOSED = re.compile(r"</think>", re.IGNORECASE)
_OPEN = re.compile(r"<(think|answer)>", re.IGNORECASE)
_TAGLESS = r"(?:(?!</?(?:think|answer)>).)*"
_FORMAT = re.compile(rf"\s*<think>{_TAGLESS}</think>\s*<answer>{_TAGLESS}</answer>\s*", re.IGNORECASE | re.DOTALL)
_WHOLE = re.compile(r"[+-]?\d+")
_LIST = re.compile(r"\d+(?:\s*[,;\s]\s*\d+)*")
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip


def last_answer(text: str) -> str | None:
    """What stands in the last <answer></answer> after the reasoning, without blanks around it; None if there is none.

    Tags in any case. Reasoning ends with the last </think>; if it is opened and not closed, or an answer is opened after
    the last whole one, the text broke off and answers nothing.
    """
    rest = text[max((match.end() for match in _CLOSED.finditer(text)), default=0) :]
    found = list(_BLOCK.finditer(rest))[-1:]
    if not found or _OPEN.search(rest, found[0].end()) or re.search(r"<think>", rest, re.IGNORECASE):
        return None
    return found[0].group(1).strip()


def well_formed(text: str) -> bool:
    """Exactly one think block and then one answer block, with nothing but blanks around them and no tag inside."""
    return _FORMAT.fullmatch(text) is not None


def plain(answer: str) -> str:
    """Lower case, single blanks, without a full stop at the end."""
    return " ".join(answer.casefold().split()).removesuffix(".").strip()


def whole_number(answer: str) -> int | None:
    """An integer in digits ("3", "-1") or a word up to twelve; None for anything else."""
    said = plain(answer)
    if said in NUMBERS:
        return NUMBERS.index(said)
    return int(said) if _WHOLE.fullmatch(said) and len(said) < 10 else None


def whole_numbers(answer: str) -> list[int] | None:
    """Non-negative integers apart from each other by commas, semicolons or blanks, perhaps in brackets; None for anything else."""
    said = plain(answer)
    if said[:1] + said[-1:] in ("[]", "()"):
        said = said[1:-1].strip()
    if not _LIST.fullmatch(said) or len(said) > 1000:
        return None
    return [int(word) for word in re.findall(r"\d+", said)]


def one_of(answer: str, words: Collection[str]) -> str | None:
    """The one of `words` (lower case) that the answer is, "-" being read as a blank; None for anything else."""
    said = " ".join(plain(answer).replace("-", " ").split())
    return said if said in words else None
