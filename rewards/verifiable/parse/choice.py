r"""Which option of a multiple-choice question a text chooses, by the first rule that leaves exactly one candidate.

    letter     the region is a letter, perhaps in brackets, bold, \text{} or \boxed{}
    phrase     "(the final) answer is B", "option: (B)": the last one
    line       "(B)", "B)", "B." or "B:" at the start of a line, if all such lines have the same letter
    option     the region is an option's text
    contained  exactly one option's text occurs, longer texts first
    capital    one capital letter stands alone, where "A" and "I" before a word are words (and "not B" is none)

There is no random letter and no nearest text: nothing found is a wrong answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from mmrl.rewards.verifiable.parse.region import Parsed, answer_text, normalise

LETTERS = "ABCDEFGH"

_OPEN, _CLOSE = r"[\s*_$()\[\]{}]*", r"[\s*_$()\[\]{}.,:;!]*"
_LETTER = re.compile(rf"{_OPEN}(?:\\(?:text|textbf|mathrm|mathbf)\s*\{{)?{_OPEN}([A-Za-z]){_CLOSE}")
_PHRASE = re.compile(
    r"\b(?:(?:final|correct|best)\s+)?(?:answer|option|choice)[*_]*\s*(?:\bis\b|:)[\s:*_$]*"
    r"(?:\\(?:boxed|text|mathrm)\s*\{)?(?P<open>[(\[{*]?)(?P<letter>[A-Za-z])(?![A-Za-z0-9'’])(?P<close>[)\]}*.,:;!]?)",
    re.IGNORECASE,
)
_HEDGE = re.compile(
    r"[\s)\]}*]*(?:,|/|;|\bor\b|\band\b)\s*(?:\bor\b|\band\b)?[\s(\[{*]*"
    r"((?-i:[B-HJ-Z])|[A-Za-z](?!\s+[A-Za-z]))(?![A-Za-z0-9'’])",
    re.IGNORECASE,
)
_REASON = re.compile(r"\s+(?:because|since|as|for|due|given)\b", re.IGNORECASE)
_LINE = re.compile(r"^[ \t]*(?:[*_]{0,2}\(([A-Za-z])\)|[*_]{0,2}([A-Za-z])(?:[*_]{0,2}[).:]))(?!\w)", re.MULTILINE)
_CAPITAL = re.compile(r"(?<!not )(?<!n't )(?<![\w'’\\])([A-Z])(?![\w'’])")
_WORD_NEXT = re.compile(r"\s+[a-z]")


def parse_choice(
    text: str,
    letters: str = LETTERS,
    options: Sequence[str] = (),
    opened: bool = False,
    repair_tags: bool = False,
) -> Parsed[str]:
    """The capital letter of the chosen option, among `letters`; `options[i]` is the text of `letters[i]`.

    If the region holds a box, only the box is read. Raises ValueError for more options than letters.
    """
    if len(options) > len(letters):
        raise ValueError(f"{len(options)} options, but only {len(letters)} letters ({letters})")
    region = answer_text(text, opened, repair_tags)
    said = region.value
    if said is None:
        return region
    rules: tuple[tuple[str, Callable[[], set[str]]], ...] = (
        ("letter", lambda: _letter(said, letters)),
        ("phrase", lambda: _phrase(said, letters)),
        ("line", lambda: _lines(said, letters)),
        ("option", lambda: _equal(said, letters, options)),
        ("contained", lambda: _contained(said, letters, options)),
        ("capital", lambda: _capitals(said, letters)),
    )
    for rule, candidates in rules:
        found = candidates()
        if len(found) == 1:
            return region.found(found.pop(), rule)
    return region.found(None)


def _among(found: Iterator[str], letters: str) -> set[str]:
    return {letter.upper() for letter in found} & set(letters)


def _letter(text: str, letters: str) -> set[str]:
    match = _LETTER.fullmatch(text) if len(text) <= 60 else None
    return _among(iter(match[1]), letters) if match else set()


def _phrase(text: str, letters: str) -> set[str]:
    """The letter of the last phrase, and every letter that it is joined to ("B or C")."""
    found: set[str] = set()
    for match in _PHRASE.finditer(text):
        rest = text[match.start("close") : match.end() + 40].split("\n", 1)[0]
        if _is_word(match, rest):
            continue
        found = {match["letter"]}
        while joined := _HEDGE.match(rest):
            found.add(joined[1])
            rest = rest[joined.end() :]
    return _among(iter(found), letters)


def _is_word(match: re.Match[str], rest: str) -> bool:
    """A bare "a" or "I" before a word ("the answer is a dog") and no letter."""
    letter = match["letter"]
    if match["open"] or match["close"] or (letter.isupper() and letter not in "AI"):
        return False
    return bool(re.match(r"\s+[A-Za-z]", rest)) and not _REASON.match(rest)


def _lines(text: str, letters: str) -> set[str]:
    return _among((match[1] or match[2] for match in _LINE.finditer(text)), letters)


def _equal(text: str, letters: str, options: Sequence[str]) -> set[str]:
    said = normalise(text)
    return {letter for letter, option in zip(letters, options, strict=False) if said and normalise(option) == said}


def _contained(text: str, letters: str, options: Sequence[str]) -> set[str]:
    """Options whose text occurs as whole words; what a longer one covers does not count for a shorter one."""
    rest, found = normalise(text), set()
    for letter, option in sorted(zip(letters, options, strict=False), key=lambda pair: -len(normalise(pair[1]))):
        wanted = normalise(option)
        if not wanted:
            continue
        whole = re.compile(rf"(?<!\w)(?<!\d[.,]){re.escape(wanted)}(?!\w|[.,]\d)")
        if whole.search(rest):
            found.add(letter)
            rest = whole.sub("\0", rest)
    return found


def _capitals(text: str, letters: str) -> set[str]:
    found = (
        match[1] for match in _CAPITAL.finditer(text) if match[1] not in "AI" or not _WORD_NEXT.match(text, match.end())
    )
    return _among(found, letters)
