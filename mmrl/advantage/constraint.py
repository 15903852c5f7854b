"""Hard constraints: a sample that breaks one is worth less than any of its group that keeps them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import Field

from mmrl.advantage.types import Bools, Floats, Ints, Scored, Shaping


def below_the_rest(reward: Floats, group: Ints, broken: Bools, margin: float) -> Floats:
    """Rewards `(N,)`, those of `broken (N,)` samples replaced by the least of the group's other samples less `margin`.

    The order of the others stays. Groups that break it throughout, or nowhere, keep their rewards. `reward` is NaN for
    unscorable samples, which stay so.
    """
    found = reward.copy()
    for key in np.unique(group):
        rows = (group == key) & ~np.isnan(reward)
        kept = rows & ~broken
        if kept.any():
            found[rows & broken] = reward[kept].min() - margin
    return found


class Constraint(Shaping):
    """Samples whose score of the reward `by` is below `at_least` get the group's least reward of the others, less `margin`; a sample
    on which `by` failed becomes unscorable."""

    by: str
    at_least: float = Field(allow_inf_nan=False)
    margin: float = Field(default=1.0, ge=0, allow_inf_nan=False)

    @property
    def reads_rewards(self) -> tuple[str, ...]:
        return (self.by,)

    def before(self, scored: Scored) -> Scored:
        broken = scored.column(self.by) < self.at_least
        known = np.where(scored.broke_down(self.by), np.nan, scored.reward)
        return replace(scored, reward=below_the_rest(known, scored.group, broken, self.margin))

    def metrics(self, scored: Scored) -> dict[str, float]:
        own = scored.column(self.by)
        known = own[~np.isnan(own)]
        return {f"constraint/{self.by}/broken": float((known < self.at_least).mean())} if known.size else {}
