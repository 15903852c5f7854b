"""Demonstrations from chats: what an assistant answered to a text with images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mmrl.data.conversation import Beside, Turn, read_turns
from mmrl.data.records import Columns, prompt_of
from mmrl.data.rows import Row, RowExamples
from mmrl.errors import UserError
from mmrl.rollout import Prompt, Sample

MEDIA = Columns(media="images")


class ChatExamples(RowExamples):
    """`{"messages": [{"role": "user", "content": "<image> What is it?"}, {"role": "assistant", "content": "A cat."}],
    "images": ["cat.png"]}`; also content in parts, and `conversations` of `{"from": "human", "value": ...}`.

    Images without a placeholder in the text stand before it.
    """

    turns: Literal["single", "first", "last"] = "single"
    """A chat of several exchanges is refused (`single`), cut after the `first`, or all before the `last` question is put
    into its text as lines "User: ..." and "Assistant: ..."."""
    system: Literal["refuse", "drop"] = "refuse"
    """What to do with a system message: the policy has its own option for one."""

    def sample(self, row: Row) -> Sample:
        """The prompt with its media, and the assistant's answer as `text`. Raises UserError with file and line."""
        name = "messages" if "messages" in row.record or "conversations" not in row.record else "conversations"
        if name not in row.record:
            raise UserError(f"{row.where}: no 'messages' (there: {', '.join(row.record) or 'nothing'})")
        beside = Beside(row.record)
        turns = read_turns(row.record[name], beside, row.where)
        asked, answer = self._exchange(without_system(turns, self.system, row.where), row.where)
        check_closed(answer.text, f"{row.where}: the answer")
        return Sample(as_prompt(asked, beside.rest(row.where), row), text=answer.text)

    def _exchange(self, turns: list[Turn], where: str) -> tuple[Turn, Turn]:
        """One question and its answer, as the option `turns` says."""
        check_order(turns, where)
        if turns[-1].role != "assistant":
            raise UserError(f"{where}: the last message is the user's; expected the assistant's answer")
        if len(turns) > 2 and self.turns == "single":
            raise UserError(
                f"{where}: {len(turns) // 2} exchanges; expected one. Set turns: first to keep the first, or turns: last to put the "
                "earlier ones into the text of the last"
            )
        if self.turns == "last":
            return folded(turns[:-1]), turns[-1]
        if any(turn.media for turn in turns[2:]):
            raise UserError(
                f"{where}: an exchange after the first has images, which turns: first would lose; set turns: last"
            )
        return turns[0], turns[1]


def without_system(turns: list[Turn], system: str, where: str) -> list[Turn]:
    """The turns after a system message. Raises UserError for one that is refused."""
    if turns[0].role != "system":
        return turns
    if system == "refuse":
        raise UserError(
            f"{where}: starts with a system message; give it to the policy as its own option and set system: drop here"
        )
    return turns[1:]


def check_order(turns: Sequence[Turn], where: str) -> None:
    """Raises UserError unless the turns are the user's and the assistant's, one after the other."""
    for number, turn in enumerate(turns):
        expected = ("user", "assistant")[number % 2]
        if turn.role != expected:
            raise UserError(f"{where}: turn {number + 1} is the {turn.role}'s; expected the {expected}'s")
    if not turns:
        raise UserError(f"{where}: no message but the system's; expected a user's message")


def check_closed(text: str, where: str) -> None:
    """Raises UserError for an answer to be learned that opens <think> or <answer> and never closes it: it was cut off."""
    for tag in ("think", "answer"):
        if text.count(f"<{tag}>") > text.count(f"</{tag}>"):
            raise UserError(f"{where} opens <{tag}> and never closes it; write </{tag}>, or remove the row")


def folded(turns: Sequence[Turn]) -> Turn:
    """Turns up to a question as one: as it is if there is only one, else as lines "User: ..." and "Assistant: ..."."""
    if len(turns) == 1:
        return turns[0]
    text = "\n".join(f"{turn.role.capitalize()}: {turn.text}" for turn in turns)
    return Turn("user", text, tuple(medium for turn in turns for medium in turn.media))


def as_prompt(asked: Turn, before: Sequence[object], row: Row) -> Prompt:
    """The prompt of a question; `before` are media without a placeholder. Raises UserError for a file that is not there."""
    record = {
        "text": asked.text,
        "images": [*before, *asked.media],
        "id": row.record.get("id"),
        "target": row.record.get("target"),
        "meta": row.record.get("meta"),
    }
    return prompt_of(record, MEDIA, row.where, row.default_id, row.folder)
