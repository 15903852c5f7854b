"""The seam of what is done with a reward's scores before they are summed.

Everything sees the batch gathered from all ranks, N samples, so that a statistic never depends on the number of processes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mmrl.advantage.types import Floats, Ints
from mmrl.components import Component


@dataclass(frozen=True)
class Seen:
    """What a transform may look at beside its own scores: `group (N,)`, and `scores`, every reward's own scores `(N,)` by name, as
    they were before any transform, NaN where there is none."""

    group: Ints
    scores: Mapping[str, Floats]


class Transform(Component):
    """Scores `(N,)` float64 -> scores `(N,)`; NaN is a sample without a score, it stays NaN and enters no statistic.

    A call changes nothing: what a transform remembers it takes in by `remember`, once a step.
    """

    remembers: ClassVar[bool] = False
    """It has a state that a checkpoint must keep."""
    scales: ClassVar[bool] = False
    """The size of its scores is what it is about, so that they must not be standardised by themselves afterwards."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of other rewards whose scores it looks at. Where one of these has no score, the result is NaN."""
        return ()

    @abstractmethod
    def __call__(self, values: Floats, seen: Seen) -> Floats:
        """The changed scores."""

    def check_weight(self, weight: float) -> None:
        """Raises ValueError for a weight of the reward with which it would do the opposite of what it is for."""
        return None

    def check_read(self, other: str, low: float | None, high: float | None) -> None:
        """Raises ValueError where it could do nothing, or one thing alone, with the scores of `other`, one of `reads`, which are from
        `low` to `high` (None: unbounded)."""
        return None

    def remember(self, values: Floats, seen: Seen) -> None:
        """Take in the scores of a step, as they came to this transform."""
        return None

    def metrics(self, values: Floats, seen: Seen) -> dict[str, float]:
        """Numbers for the log, the same on all ranks; `values` are the scores of the step, as they come to it."""
        return {}

    def state(self) -> dict[str, Any]:
        """JSON-able; what a checkpoint keeps."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        return None
