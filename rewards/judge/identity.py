"""Who answers: one judge in a run, as its replies say, and which prompt it is given."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from typing import Any

SAID = ("model", "system_fingerprint")
"""Entries of a chat completion that say who answered."""

Who = tuple[str | None, str | None]


def who_of(completion: Mapping[str, Any]) -> Who:
    """Model and fingerprint as a completion reports them, None for what it does not say."""
    model, fingerprint = (completion.get(key) for key in SAID)
    return None if model is None else str(model), None if fingerprint is None else str(fingerprint)


def prompt_hash(*parts: Any) -> str:
    """12 hex digits that change with anything of the JSON-able `parts`."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


class Identity:
    """Compares replies with each other, from several threads. What a reply does not say is not compared, and the name that was asked for
    is not either, as it may be an alias."""

    def __init__(self) -> None:
        self.known: list[str | None] = [None] * len(SAID)
        self.guard = threading.Lock()

    def change(self, who: Who) -> str | None:
        """What differs from the replies before, as a line; None for the same judge."""
        with self.guard:
            for place, (name, said) in enumerate(zip(SAID, who, strict=True)):
                before = self.known[place]
                if said is not None and before is not None and said != before:
                    return (
                        f"the judge changed within the run: its replies said {name} '{before}', and one says '{said}'"
                    )
            self.known = [before if said is None else said for before, said in zip(self.known, who, strict=True)]
        return None
