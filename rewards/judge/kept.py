"""Answers that could be read, in memory and, where a folder is given, on disk; with each, who gave it."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrl.rewards.judge.identity import Who


@dataclass(frozen=True)
class Reply:
    """What a judge said: its text, the log-probs of the likeliest first tokens where they were asked for, and who it says it is."""

    text: str
    first: Mapping[str, float] = field(default_factory=dict)
    who: Who = (None, None)


class Kept:
    """Replies by key. Several processes may write into one folder: nobody reads half a file."""

    def __init__(self, folder: str | None) -> None:
        self.folder = None if folder is None else Path(folder)
        self.replies: dict[str, Reply] = {}

    def get(self, key: str) -> Reply | None:
        """None also for a file that broke off, or holds no reply."""
        if key in self.replies:
            return self.replies[key]
        file = self._file(key)
        if file is None or not file.is_file():
            return None
        try:
            reply = _read(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        self.replies[key] = reply
        return reply

    def put(self, key: str, reply: Reply) -> None:
        """In the place of what was there."""
        self.replies[key] = reply
        file = self._file(key)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{uuid.uuid4().hex}.part")
            said = {"text": reply.text, "first": dict(reply.first), "who": reply.who}
            part.write_text(json.dumps(said), encoding="utf-8")
            os.replace(part, file)

    def _file(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / key[:2] / f"{key}.json"


def _read(said: Any) -> Reply:
    """Raises what it likes for what is no reply."""
    model, fingerprint = said.get("who", (None, None))
    first = {str(token): float(value) for token, value in said["first"].items()}
    if not isinstance(said["text"], str) or not all(value <= 0 for value in first.values()):
        raise ValueError("no reply")
    return Reply(said["text"], first, (model, fingerprint))
