"""Steps of a run with their old and their new numbers. N samples of all steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmrl.advantage.types import Ints
from mmrl.replay.kept import Kept
from mmrl.replay.rescore import Rescored
from mmrl.replay.shift import Shift, shift
from mmrl.reward import RewardSet
from mmrl.rollout import OK


@dataclass(frozen=True)
class Replayed:
    """A step with its old and its new numbers; `kept` has no samples any more, only the `prompts` (n) that they are of."""

    kept: Kept
    prompts: tuple[str, ...]
    again: Rescored


@dataclass
class Replay:
    """All steps, and the rewards they were scored with: those of the config `name`; `run` and `stage` are whose samples they are."""

    name: str
    run: str
    stage: str
    rewards: RewardSet
    steps: list[Replayed] = field(default_factory=list)

    def joined(self, pick: Any) -> np.ndarray:
        """What `pick` takes of a step, of all steps behind each other."""
        return np.concatenate([pick(one) for one in self.steps])

    @property
    def group(self) -> Ints:
        """(N,) numbers that samples share that are compared, over all steps."""
        pairs = [np.stack([np.full(len(one.prompts), one.kept.step), one.kept.compared], 1) for one in self.steps]
        return np.asarray(np.unique(np.concatenate(pairs), axis=0, return_inverse=True)[1]).reshape(-1)


def shifts(found: Replay) -> dict[str, Shift]:
    """By step ("10"), and "all" of them together."""
    result = {str(one.kept.step): shift(one.kept.total, one.again.total, one.kept.advantage, one.again.advantage, one.kept.compared)
              for one in found.steps}  # fmt: skip
    old, new, before, after = (found.joined(pick) for pick in PICKS)
    return result | {"all": shift(old, new, before, after, found.group)}


PICKS = (
    lambda one: one.kept.total,
    lambda one: one.again.total,
    lambda one: one.kept.advantage,
    lambda one: one.again.advantage,
)
"""Totals and advantages, old and new each, of a step."""


def same(found: Replay) -> tuple[int, int, int, int]:
    """How many scores of rewards that have the name of an old one are what they were, of how many; and so of the advantages."""
    equal = values = 0
    for one in found.steps:
        for column, name in enumerate(found.rewards.names):
            if name in one.kept.names:
                old = one.kept.names.index(name)
                alike = one.kept.status[:, old] == one.again.status[:, column]
                alike &= (one.kept.values[:, old] == one.again.values[:, column]) | (one.again.status[:, column] != OK)
                equal, values = equal + int(alike.sum()), values + len(alike)
    before, after = found.joined(PICKS[2]), found.joined(PICKS[3])
    return equal, values, int((before == after).sum()), len(before)
