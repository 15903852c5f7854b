"""How many reward failures a run bears."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mmrl.errors import RunError, UserError


@dataclass
class FailureBudget:
    """How many failures a run bears: a `share` of the samples of `window` steps.

    The budget is `share * window * samples per step` failed samples among the last `window` steps, from the first step
    on: one early failure does not stop a run, a reward that always fails does after `share * window` steps. With
    share 0 the first failure stops it.
    """

    share: float = 0.01
    window: int = 50
    steps: deque[tuple[int, int]] = field(default_factory=deque)
    causes: deque[dict[str, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.window < 1:
            raise UserError(
                f"a failure budget needs a share in 0..1 and a window of 1 or more, got {self.share}, {self.window}"
            )

    def add(self, failed: int, total: int, messages: Sequence[str] = ()) -> None:
        """Take in one step; raises RunError if it exceeds the budget.

        `failed` and `total` must be summed over all processes before, so that all of them stop at the same step;
        `messages` may be this process's own.
        """
        self.steps.append((failed, total))
        self.causes.append(dict(Counter(cause(message) for message in messages)))
        while len(self.steps) > self.window:
            self.steps.popleft()
            self.causes.popleft()
        bad, seen = (sum(column) for column in zip(*self.steps, strict=True))
        if bad <= self.share * self.window * seen / len(self.steps):
            return
        often = sum((Counter(step) for step in self.causes), Counter()).most_common(1)
        reason = f"; most often ({often[0][1]} times): {often[0][0]}" if often else ""
        raise RunError(
            f"rewards failed on {bad} of {seen} samples in {len(self.steps)} steps, more than the budget of "
            f"{self.share:.3g} of the samples of {self.window} steps{reason}; mend the reward, or start its server again, then go on "
            "with --resume"
        )

    def state(self) -> dict[str, Any]:
        """JSON-able; what a checkpoint keeps."""
        return {"steps": [list(step) for step in self.steps], "causes": [dict(step) for step in self.causes]}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.steps = deque((int(failed), int(total)) for failed, total in state["steps"])
        self.causes = deque(dict(step) for step in state["causes"])


def cause(message: str) -> str:
    """A failure without the sample it happened on, so that equal causes can be counted."""
    return re.sub(r" on sample \d+ of prompt '.*?'(?= \(|;|$)", "", message)
