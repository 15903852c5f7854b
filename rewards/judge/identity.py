"""Who answers: one judge in a run, as its replies say, and which prompt it is given."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from typing import Any

SAID = ("model", "system_fingerprint")
"""Entries of a chat completion that say who answered."""
SERVED = ("id", "root", "parent")
"""Entries of a served model, as `/models` lists it, that say which weights it has."""

Who = tuple[str | None, str | None]


def who_of(completion: Mapping[str, Any]) -> Who:
    """Model and fingerprint as a completion reports them, None for what it does not say."""
    model, fingerprint = (completion.get(key) for key in SAID)
    return None if model is None else str(model), None if fingerprint is None else str(fingerprint)


def served(body: bytes, model: str) -> str:
    """What a server's list of models says of `model`, as JSON; nothing where it does not list it, or is no list."""
    try:
        listed = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    found = listed.get("data") if isinstance(listed, Mapping) else None
    for one in found if isinstance(found, list) else ():
        if isinstance(one, Mapping) and one.get("id") == model:
            return json.dumps({key: one[key] for key in SERVED if one.get(key) is not None}, sort_keys=True)
    return ""


def prompt_hash(*parts: Any) -> str:
    """12 hex digits that change with anything of the JSON-able `parts`."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


class Identity:
    """Who answers this process, as live replies say, from several threads; kept ones are compared and never decide. The `fingerprint`
    counts where it is wanted. What a reply does not say is not compared, and the name that was asked for is not either, as it may be
    an alias."""

    def __init__(self, fingerprint: bool = False) -> None:
        self.compared = SAID if fingerprint else SAID[:1]
        self.known: list[str | None] = [None] * len(self.compared)
        self.guard = threading.Lock()

    def differs(self, who: Who) -> str | None:
        """What differs from the live replies, as a line; None for the same judge."""
        for name, before, said in zip(self.compared, self.known, who, strict=False):
            if said is not None and before is not None and said != before:
                return f"the judge changed within the run: its replies said {name} '{before}', and one says '{said}'"
        return None

    def take(self, who: Who) -> str | None:
        """As `differs`, of a live reply; the same judge's is taken in."""
        with self.guard:
            change = self.differs(who)
            if change is None:
                self.known = [before if said is None else said for before, said in zip(self.known, who, strict=False)]
            return change

    def name(self) -> str:
        """What live replies said, as JSON; nothing where they say nothing of themselves."""
        return json.dumps(self.known) if any(said is not None for said in self.known) else ""
