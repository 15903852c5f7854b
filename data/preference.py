"""Pairs of answers to one prompt, of which one is better."""

from __future__ import annotations

from typing import Any, Literal

from mmrl.data.chat import as_prompt, check_closed, check_order, folded, without_system
from mmrl.data.conversation import Beside, Turn, read_content, read_turns
from mmrl.data.rows import Row, RowExamples
from mmrl.errors import UserError
from mmrl.rollout import Sample


class PreferenceExamples(RowExamples):
    """`{"prompt": "<image> What is it?", "chosen": "A cat.", "rejected": "A dog.", "images": ["cat.png"]}`.

    Each of the three may be a text or a list of messages. Without a prompt, `chosen` and `rejected` are whole chats that
    differ in the last message only.
    """

    prompt: str = "prompt"
    """The key that holds the prompt."""
    chosen: str = "chosen"
    rejected: str = "rejected"
    system: Literal["refuse", "drop"] = "refuse"
    """What to do with a system message: the policy has its own option for one."""

    def sample(self, row: Row) -> Sample:
        """The better answer as `text`, the worse as `meta["rejected"]`. Raises UserError with file and line."""
        for key in (self.chosen, self.rejected):
            if key not in row.record:
                raise UserError(f"{row.where}: no '{key}' (there: {', '.join(row.record) or 'nothing'})")
        beside = Beside(row.record)
        better, worse = row.record[self.chosen], row.record[self.rejected]
        if self.prompt in row.record:
            asked = self._asked(row.record[self.prompt], beside, row.where)
        elif isinstance(better, list | tuple) and isinstance(worse, list | tuple) and len(better) > 1:
            if list(better[:-1]) != list(worse[:-1]):
                raise UserError(
                    f"{row.where}: '{self.chosen}' and '{self.rejected}' answer different chats; expected one prompt"
                )
            asked, better, worse = self._asked(better[:-1], beside, row.where), better[-1:], worse[-1:]
        else:
            raise UserError(f"{row.where}: no '{self.prompt}' (there: {', '.join(row.record)})")
        before = beside.rest(row.where)
        answers = [
            _answer(value, f"{row.where}: '{key}'") for value, key in ((better, self.chosen), (worse, self.rejected))
        ]
        check_closed(answers[0], f"{row.where}: '{self.chosen}'")
        if answers[0].split() == answers[1].split():
            raise UserError(f"{row.where}: '{self.chosen}' and '{self.rejected}' are the same text")
        return Sample(as_prompt(asked, before, row), text=answers[0], meta={"rejected": answers[1]})

    def _asked(self, value: Any, beside: Beside, where: str) -> Turn:
        if isinstance(value, str):
            return Turn("user", *read_content(value, beside, f"{where}: '{self.prompt}'", media=True))
        turns = without_system(read_turns(value, beside, where), self.system, where)
        check_order(turns, where)
        if turns[-1].role != "user":
            raise UserError(f"{where}: the prompt ends with the assistant's message; expected the user's")
        return folded(turns)


def _answer(value: Any, where: str) -> str:
    """The text of an answer: a string, or a list of one message of the assistant."""
    nothing = Beside({})
    if isinstance(value, str):
        return read_content(value, nothing, where, media=False)[0]
    turns = read_turns(value, nothing, where)
    if len(turns) != 1 or turns[0].role != "assistant":
        raise UserError(f"{where} has {len(turns)} messages; expected one, the assistant's")
    return turns[0].text
