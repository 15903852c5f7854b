r"""Where in a text the answer stands: special tokens and reasoning go, the last <answer> block or \boxed{} stays.

All parsers share these rules, so that adding reasoning, or a chat template's tokens, never changes an answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
U = TypeVar("U")

_SPECIAL = re.compile(r"<\|[^<>|\s]{1,40}\|>|</?s>|<(?:pad|bos|eos|unk|start_of_turn|end_of_turn)>")
_THINK = re.compile(r"<(/?)think>", re.IGNORECASE)
_ANSWER = re.compile(r"<(/?)answer>", re.IGNORECASE)
_SPACED = re.compile(r"<\s*(/?)\s*(think|answer)\s*>", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_ESCAPED_OR_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


@dataclass(frozen=True)
class Parsed(Generic[T]):
    """What a text answers.

    `value`: the answer, None if there is none that can be read. `rule`: name of the rule that found it ("" for none).
    `raw_span`: the piece of text that was read. `truncated`: reasoning, an answer block or a box was opened and never
    closed. `untagged`: there was no answer block, so the whole text after the reasoning was read.
    """

    value: T | None
    rule: str = ""
    raw_span: str = ""
    truncated: bool = False
    untagged: bool = False

    @property
    def unparsed(self) -> bool:
        """There is no answer that can be read."""
        return self.value is None

    @property
    def label(self) -> str:
        """One word for the log: the rule, "_untagged" behind it where that holds, or "truncated" or "unparsed"."""
        if self.unparsed:
            return "truncated" if self.truncated else "unparsed"
        return f"{self.rule}_untagged" if self.untagged else self.rule

    def found(self, value: U | None, rule: str = "", raw_span: str | None = None) -> Parsed[U]:
        """The same place in the text with another value; None gives an unparsed result."""
        span = self.raw_span if raw_span is None else raw_span
        return Parsed(value, rule if value is not None else "", span, self.truncated, self.untagged)


class Region(NamedTuple):
    """The part of a text that may hold the answer."""

    text: str
    truncated: bool
    untagged: bool


def clean(text: str, repair_tags: bool = False) -> str:
    r"""`text` with \n line ends and without special tokens; case is kept.

    `repair_tags` closes up the blanks inside think and answer tags ("< / think >"), and nothing else.
    """
    text = _SPECIAL.sub("", text.replace("\r\n", "\n"))
    return _SPACED.sub(r"<\1\2>", text) if repair_tags else text


def without_reasoning(text: str, opened: bool = False) -> tuple[str, bool]:
    """`(text outside <think> blocks, truncated)`.

    Blocks nest and are counted. A closing tag without an opening one ends reasoning that a template opened: only what
    follows the last of them is kept. Reasoning that never ends is truncated, and nothing is left. `opened` says that the
    prompt ended in an open <think>, so that a text without any tag is unfinished reasoning.
    """
    kept: list[str] = []
    depth, start = int(opened), 0
    for tag in _THINK.finditer(text):
        if depth == 0:
            kept.append(text[start : tag.start()])
        if not tag[1]:
            depth += 1
        elif depth:
            depth -= 1
        else:
            kept.clear()
        start = tag.end()
    return ("", True) if depth else ("".join([*kept, text[start:]]), False)


def answer_region(text: str, opened: bool = False, repair_tags: bool = False) -> Region:
    """The last, innermost <answer> block after the reasoning; without one, everything after the reasoning, untagged.

    An <answer> that is opened after the last whole block and never closed is truncated: nothing is left.
    """
    rest, truncated = without_reasoning(clean(text, repair_tags), opened)
    start: int | None = None
    block: str | None = None
    for tag in _ANSWER.finditer(rest):
        if not tag[1]:
            start = tag.end()
        elif start is not None:
            block, start = rest[start : tag.start()], None
    if truncated or start is not None:
        return Region("", True, block is None and start is None)
    if block is None:
        return Region(_ANSWER.sub(" ", rest).strip(), False, True)
    return Region(block.strip(), False, False)


def boxed(text: str) -> str | None:
    r"""The content of the last \boxed{}, "\boxed {}" or \fbox{}; None if there is none or it is never closed.

    Braces are counted; \{ and \} are no braces.
    """
    last: re.Match[str] | None = None
    for opening in _BOX.finditer(text):
        last = opening
    return None if last is None else _until_closed(text, last.end())


def has_box(text: str) -> bool:
    """A box is opened somewhere."""
    return _BOX.search(text) is not None


def answer_text(text: str, opened: bool = False, repair_tags: bool = False) -> Parsed[str]:
    """The text of the answer, without blanks around it: the last box of the answer region, else the region.

    Rules: "boxed", "answer" (a block), "text" (neither). An empty region is unparsed, an empty box too.
    """
    region = answer_region(text, opened, repair_tags)
    if has_box(region.text):
        content = boxed(region.text)
        if content is None:
            return Parsed(None, "", region.text, truncated=region.untagged, untagged=region.untagged)
        return Parsed(content.strip() or None, "boxed", content, False, region.untagged)
    rule = "text" if region.untagged else "answer"
    return Parsed(region.text or None, rule if region.text else "", region.text, region.truncated, region.untagged)


def normalise(text: str) -> str:
    """For comparing words: case folded, single blanks, without quotes and punctuation around the text."""
    return " ".join(text.casefold().split()).strip(" .,;:!?\"'`*“”‘’")


def _until_closed(text: str, start: int) -> str | None:
    depth = 1
    for mark in _ESCAPED_OR_BRACE.finditer(text, start):
        if mark[0] in "{}":
            depth += 1 if mark[0] == "{" else -1
        if depth == 0:
            return text[start : mark.start()]
    return None
