"""The question that a reward model was trained with: a text file that belongs to its checkpoint, and the prompt's place in it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrl.errors import UserError

PLACES = ("{prompt}", "{text_prompt}")
"""Where the prompt goes; the second as the originals write it."""
MEDIA = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
"""Tokens that no text may hold: they end the turn or stand for media."""


@dataclass(frozen=True)
class Rubric:
    """The text, exactly as in the file (every line break counts), and the SHA-256 of the file."""

    text: str
    sha256: str

    def about(self, prompt: str) -> str:
        """The question about `prompt`."""
        head, _, rest = self.text.partition(self.place)
        return head + prompt + rest

    @property
    def place(self) -> str:
        """The placeholder that the file uses."""
        return next(place for place in PLACES if place in self.text)


def check_free(prompt: str, tokens: Collection[str]) -> None:
    """Raises ValueError for a prompt that holds a token that would move the reward or the media."""
    for token in tokens:
        if token in prompt:
            raise ValueError(f"the prompt contains the special token {token}")


def read_rubric(who: str, given: str | None, path: str, name: str, tokens: Sequence[str]) -> Rubric:
    """The rubric file `given`, by default `name` in the folder `path` (or beside the file `path`).

    Raises UserError when it is not there, has no place for the prompt or not each of `tokens` once, in this order, or holds what an
    editor has added (a byte order mark, carriage returns: other tokens than those of the training) or a token of `MEDIA`.
    """
    local = Path(path)
    file = Path(given) if given is not None else (local if local.is_dir() else local.parent) / name
    need = f"a UTF-8 text with {PLACES[0]} where the prompt goes and {', '.join(tokens)} where the reward is read"
    if not file.is_file():
        where = (
            f"'{file}'"
            if given is not None or local.exists()
            else f"'{name}' beside it ({path!r} is no folder here; give the file with the option for the rubric)"
        )
        raise UserError(
            f"{who} needs the rubric that its checkpoint was trained with, {need}; it comes with the checkpoint's own code, "
            f"not with mmrl, and there is no {where}"
        )
    data = file.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"the rubric '{file}' is no UTF-8 text: {error.reason} at byte {error.start}") from error
    for mark, what in (("\ufeff", "a byte order mark"), ("\r", "a carriage return")):
        if mark in text:
            raise UserError(
                f"the rubric '{file}' has {what}, which was not in training: save it as plain UTF-8 with \\n line ends"
            )
    for token in MEDIA:
        if token in text:
            raise UserError(f"the rubric '{file}' holds the special token {token}; expected {need}")
    if sum(text.count(place) for place in PLACES) != 1:
        raise UserError(f"the rubric '{file}' needs {PLACES[0]} once; expected {need}")
    at = [text.find(token) for token in tokens]
    if any(text.count(token) != 1 for token in tokens) or at != sorted(at):
        raise UserError(f"the rubric '{file}' needs {', '.join(tokens)} once each, in this order; expected {need}")
    return Rubric(text, hashlib.sha256(data).hexdigest())
