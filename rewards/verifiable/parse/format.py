r"""Whether a text has the agreed form.

    think_answer  one think block, blanks, one answer block, and nothing else
    think_boxed   one think block, then text with a closed \boxed{}
    answer_only   one answer block and nothing else
    boxed_only    text with a closed \boxed{} and no think or answer tag
    regex         a full match of a pattern of your own ("." matches line breaks)

No block holds a tag. Blanks at the end of the text are allowed, at its start they are not. Tags count in any case.
"""

from __future__ import annotations

import re
from typing import Literal

from mmrl.rewards.verifiable.parse.region import boxed, clean

Form = Literal["think_answer", "think_boxed", "answer_only", "boxed_only", "regex"]

_TAGLESS = r"(?:(?!</?(?:think|answer)>).)*"
_THINK, _ANSWER = rf"<think>{_TAGLESS}</think>", rf"<answer>{_TAGLESS}</answer>"
_FORMS: dict[str, re.Pattern[str]] = {
    name: re.compile(pattern, re.DOTALL | re.IGNORECASE)
    for name, pattern in {
        "think_answer": rf"{_THINK}\s*{_ANSWER}\s*",
        "think_boxed": rf"{_THINK}({_TAGLESS})",
        "answer_only": rf"{_ANSWER}\s*",
        "boxed_only": rf"({_TAGLESS})",
    }.items()
}


def follows(text: str, form: Form, pattern: str = "", opened: bool = False, repair_tags: bool = False) -> bool:
    """`text` has the form; `pattern` belongs to "regex". `opened`: the prompt already ended in <think>."""
    text = clean(text, repair_tags)
    if opened and form in ("think_answer", "think_boxed"):
        text = f"<think>{text}"
    if form == "regex":
        return re.fullmatch(pattern, text, re.DOTALL) is not None
    match = _FORMS[form].fullmatch(text)
    if match is None:
        return False
    return boxed(match[1]) is not None if form in ("think_boxed", "boxed_only") else True
