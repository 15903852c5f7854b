"""What every stage has in common: a work yields updates; an update yields losses whose gradients are summed into one optimizer step.

Losses are divided by counts that are global over ranks and micro-batches, so that neither splitting changes a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor

from mmrl.errors import RunError
from mmrl.meter import Meter
from mmrl.policy import Policy
from mmrl.rollout import Prompt

Updates = Iterator[Iterator[Tensor] | None]
"""None is an update without any signal: no optimizer step, on any rank."""

LEFT_OUT = 5
"""How many of the prompts that are left out are named."""

NOTICES = 20
"""How many things a stage says beside its progress."""


class Work(Protocol):
    """One stage's work; everything it remembers between steps is in `state`."""

    updates_per_step: int
    samples_per_step: int

    def updates(self, step: int, meter: Meter) -> Updates: ...

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any]) -> None: ...


class Notices:
    """Says a thing once, or one message `about` a thing, and not more than `NOTICES` things."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.said: set[str] = set()

    def __call__(self, message: str, about: str = "") -> None:
        key = about or message
        if key not in self.said and len(self.said) < NOTICES:
            self.said.add(key)
            self.say(message)


def readable(policy: Policy, prompts: Sequence[Prompt], say: Callable[[str], None]) -> list[Prompt]:
    """The prompts that `policy` can read whole; says how many are left out, and which. Raises RunError for none left."""
    kept, left_out = policy.fits(prompts)
    if left_out:
        named = ", ".join(f"{id} ({length})" for id, length in list(left_out.items())[:LEFT_OUT])
        more = ", ..." if len(left_out) > LEFT_OUT else ""
        what = f"{len(left_out)} of {len(prompts)} prompts are too long for the policy (tokens): {named}{more}"
        if not kept:
            raise RunError(f"{what}; raise policy.max_prompt_tokens")
        say(f"left out: {what}")
    return kept
