"""Messages of a chat -> turns with text and media, whichever of the usual ways they are written in.

Media stand in a text as <image> and <video>. They come either from lists beside the messages (`images`, `videos`), taken
in the order of the placeholders, or as parts of a message's content: `{"type": "image", "image": "cat.png"}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmrl.errors import UserError

KINDS = ("image", "video")
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
SLOT = re.compile("<(image|video)>")


@dataclass(frozen=True)
class Turn:
    """What one side said; `media` are file names or images, one for every placeholder of `text`, in order."""

    role: str
    text: str
    media: tuple[Any, ...] = ()


class Beside:
    """The media beside a row's messages, handed out in order."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.left: dict[str, list[Any]] = {}
        for kind in KINDS:
            found: list[Any] = []
            for value in (record.get(kind), record.get(f"{kind}s")):
                found += list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
            self.left[kind] = found
        self.taken = 0

    def take(self, kind: str, where: str) -> Any:
        """The next medium of a kind. Raises UserError if there is none left."""
        if not self.left[kind]:
            raise UserError(f"{where}: the messages have more <{kind}> than there are {kind}s beside them")
        self.taken += 1
        return self.left[kind].pop(0)

    def rest(self, where: str) -> tuple[Any, ...]:
        """What no placeholder named: everything if there was no placeholder at all, else it must be nothing."""
        left = tuple(medium for kind in KINDS for medium in self.left[kind])
        if left and self.taken:
            kind = next(kind for kind in KINDS if self.left[kind])
            raise UserError(
                f"{where}: {len(self.left[kind])} {kind}s more than the messages have <{kind}>; write one for each, or none"
            )
        return left


def read_turns(messages: Any, beside: Beside, where: str) -> list[Turn]:
    """The turns of `[{"role": ..., "content": ...}, ...]` or `[{"from": "human", "value": ...}, ...]`.

    Raises UserError, starting with `where`, for whatever is no message, and for media in another turn than the user's.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise UserError(f"{where}: the messages are {_show(messages)}; expected a list of {{role, content}}")
    turns = []
    for number, message in enumerate(messages, start=1):
        at = f"{where}: message {number}"
        if not isinstance(message, Mapping):
            raise UserError(f"{at} is {_show(message)}; expected {{role, content}}")
        role = message.get("role", message.get("from"))
        if not isinstance(role, str) or role not in ROLES:
            raise UserError(f"{at} has the role {_show(role)}; expected system, user or assistant")
        text, media = read_content(message.get("content", message.get("value")), beside, at, ROLES[role] == "user")
        turns.append(Turn(ROLES[role], text, media))
    return turns


def read_content(content: Any, beside: Beside, where: str, media: bool) -> tuple[str, tuple[Any, ...]]:
    """Text with placeholders, and a medium for each, of a text or a list of parts; `media` says whether there may be any."""
    if isinstance(content, str):
        found = tuple(beside.take(slot.group(1), where) for slot in SLOT.finditer(content)) if media else ()
        text = content
    elif isinstance(content, list | tuple):
        pieces = [_part(part, beside, where, media) for part in content]
        text, found = "".join(piece for piece, _ in pieces), tuple(medium for _, own in pieces for medium in own)
    else:
        raise UserError(f"{where} says {_show(content)}; expected a text or a list of parts")
    if not media and SLOT.search(text):
        raise UserError(f"{where} has {SLOT.search(text).group()}, and only a user's message may")  # type: ignore[union-attr]
    if not SLOT.sub("", text).strip():
        raise UserError(f"{where} is empty; write a text, or remove the row")
    return text, found


def _part(part: Any, beside: Beside, where: str, media: bool) -> tuple[str, tuple[Any, ...]]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        if SLOT.search(part["text"]):
            raise UserError(
                f'{where}: a part of type text holds <image> or <video>; write it as a part: {{"type": "image"}}'
            )
        return part["text"], ()
    if kind not in KINDS:
        raise UserError(f"{where} has the part {_show(part)}; expected one of type text, image or video")
    if not media:
        raise UserError(f"{where} has a part of type {kind}, and only a user's message may")
    own = next((part[key] for key in (kind, "path") if part.get(key) is not None), None)
    return f"<{kind}>", (beside.take(kind, where) if own is None else own,)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
