"""PEARL: a prompt is reasoned about only where its perception is good enough, which its sub-questions show."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from mmrl.advantage.types import Bools, Floats, Ints, Scored, Shaping
from mmrl.errors import UserError

SLACK = 1e-9


class Seen(NamedTuple):
    """M groups with sub-questions, by `group (M,)` ascending: `accuracy (M,)`, the mean score of all samples of the sub-questions, NaN
    where none has a score."""

    group: Ints
    accuracy: Floats


def seen_of(accuracy: Floats, parent: Ints) -> Seen:
    """`accuracy (N,)` with NaN = unscorable, `parent (N,)` the group that a sample's question belongs to, -1 for none."""
    groups = np.unique(parent[parent >= 0])
    means = np.full(len(groups), np.nan)
    for place, group in enumerate(groups):
        own = accuracy[(parent == group) & ~np.isnan(accuracy)]
        if own.size:
            means[place] = own.mean()
    return Seen(groups, means)


def gated(seen: Seen, group: Ints, threshold: float) -> Bools:
    """(N,) bool: the sample is of a group whose sub-questions were answered below `threshold` on average.

    A group without sub-questions is not gated, nor one of whose sub-questions no sample has a score: nothing is known of it.
    Source: PEARL (Perceptual-Evidence Anchored Reinforced Learning), reconstructed.
    """
    return np.isin(group, seen.group[seen.accuracy < threshold - SLACK])


class ChecklistGate(Shaping):
    """Advantages of a group become 0 where its sub-questions (`curriculum.checklist`) were answered below `threshold` on average.

    Sub-questions are trained in any case. Threshold 0 gates nothing.
    """

    reads_checklist: ClassVar[bool] = True

    threshold: float = Field(default=0.5, ge=0, le=1)
    accuracy: str | None = None
    """Name of the reward that says whether a sub-question was answered, 0 to 1; default: the total."""

    @property
    def reads_rewards(self) -> tuple[str, ...]:
        return () if self.accuracy is None else (self.accuracy,)

    def __call__(self, advantage: Floats, scored: Scored) -> Floats:
        if not self.threshold:
            return advantage
        if scored.parent is None:
            raise UserError(
                "checklist_gate reads the answers to sub-questions, and none were asked; add curriculum.checklist"
            )
        return np.where(gated(self._seen(scored, scored.parent), scored.group, self.threshold), 0.0, advantage)

    def metrics(self, scored: Scored) -> dict[str, float]:
        """Mean accuracy of the sub-questions, and of the groups that have any the share that is gated and the share of which
        nothing is known."""
        if scored.parent is None or not (scored.parent >= 0).any():
            return {}
        seen = self._seen(scored, scored.parent)
        known = ~np.isnan(seen.accuracy)
        own = self._accuracy(scored)[(scored.parent >= 0) & scored.scorable]
        found = {
            "checklist/gated": float((seen.accuracy[known] < self.threshold - SLACK).sum() / len(known)),
            "checklist/unknown": float((~known).mean()),
        }
        return found | ({"checklist/accuracy": float(np.nanmean(own))} if known.any() else {})

    def _seen(self, scored: Scored, parent: Ints) -> Seen:
        return seen_of(self._accuracy(scored), parent)

    def _accuracy(self, scored: Scored) -> Floats:
        """(N,), NaN for unscorable samples. Raises UserError where what is read is no accuracy, or no score of sub-questions, and
        there is a threshold to compare it with."""
        assert scored.parent is not None
        found = scored.column(self.accuracy)
        if not self.threshold:
            return found
        asked = found[(scored.parent >= 0) & scored.scorable]
        off = asked[(asked < -SLACK) | (asked > 1 + SLACK)]
        if off.size:
            raise UserError(
                f"checklist_gate reads an accuracy between 0 and 1, got {off[0]:g}; name the reward to read (accuracy: NAME)"
            )
        tried = asked.size and not (
            self.accuracy is not None and scored.broke_down(self.accuracy)[scored.parent >= 0].any()
        )
        if tried and np.isnan(asked).all():
            raise UserError(
                f"checklist_gate reads reward '{self.accuracy}', which scores none of the answers to sub-questions; name one that does"
            )
        return found
