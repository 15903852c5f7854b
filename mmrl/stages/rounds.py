"""The rollouts of one step: one, or several (its parts, or those of dynamic sampling), that are scored and trained as one batch.

N samples of all ranks and rounds, round after round and inside a round rank after rank; n of them belong to a round on
this rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmrl.advantage.tree import apart
from mmrl.advantage.types import Floats, Ints, Scored
from mmrl.reward import RewardSet
from mmrl.rollout import FAILED, Draw, Rollout, Scores

PARTS = 1 << 16
"""More than a group has parts (see `Rollout.part`)."""


@dataclass
class Round:
    """A rollout on this rank. `draws` are those of all ranks, `mine` this rank's part of them, `start` the place of the
    round's first sample among the N. `measured` is by name; `train (n, S)` bool, `factor (n, S)` (of the correction, 1
    without one) and `seen (n,)` bool by view are filled in before the losses."""

    draws: Sequence[Draw]
    mine: slice
    start: int
    rollout: Rollout
    measured: Mapping[str, Tensor] = field(default_factory=dict)
    train: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.bool))
    factor: Tensor | None = None
    seen: dict[str, Tensor] = field(default_factory=dict)

    @property
    def drawn(self) -> Tensor:
        """The drawn steps `(n, S)` bool of the samples that are trained."""
        return self.rollout.mask & self.train.any(1, keepdim=True).to(self.rollout.mask.device)

    @property
    def rows(self) -> slice:
        """This rank's samples of the round among the N."""
        return slice(self.start + self.mine.start, self.start + self.mine.stop)


@dataclass
class Table:
    """What was found out about samples: `values (N, K)` and `status (N, K)` of the rewards, `group (N,)`, numbers `(N,)` by
    name in `extra`, parsed `answers` (N; `has_answers` says whether any sample says so), ids of the `prompts` (N), messages; `parent (N,)` the group whose sub-question it answers, -1 for none; `node (N, S)` and `log_prob (N, S)` of
    rollouts that are trees."""

    values: Floats
    status: Ints
    group: Ints
    extra: Mapping[str, Floats]
    answers: tuple[str | None, ...]
    has_answers: bool
    prompts: tuple[str, ...]
    messages: tuple[str, ...]
    parent: Ints
    node: Ints | None = None
    log_prob: Floats | None = None

    @classmethod
    def of(cls, scores: Scores, rollout: Rollout, extra: Mapping[str, Tensor], first_group: int) -> Table:
        """The samples of one rollout; `extra` are numbers `(n,)`, groups count from `first_group`."""
        said: list[Any] = [sample.meta.get("answer") for sample in rollout.samples]
        group = rollout.group.cpu().numpy() + first_group
        if rollout.part is not None:
            group = group * PARTS + rollout.part.cpu().numpy()
        length = rollout.mask.sum(1).cpu().numpy().astype(np.float64)
        return cls(
            scores.values,
            scores.status,
            group,
            {"length": length} | {name: value.cpu().numpy().astype(np.float64) for name, value in extra.items()},
            tuple(None if one is None else str(one) for one in said),
            any("answer" in sample.meta for sample in rollout.samples),
            tuple(sample.prompt.id for sample in rollout.samples),
            tuple(scores.messages),
            np.array(
                [-1 if draw.parent is None else draw.parent + first_group for draw in rollout.draws], dtype=np.int64
            ),
            None if rollout.tree is None else rollout.tree.node.cpu().numpy(),
            None if rollout.tree is None else rollout.log_prob.cpu().numpy().astype(np.float64),
        )

    @classmethod
    def join(cls, parts: Sequence[Table]) -> Table:
        """All rows under each other."""
        return cls(
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.status for part in parts]),
            np.concatenate([part.group for part in parts]),
            {name: np.concatenate([part.extra[name] for part in parts]) for name in parts[0].extra},
            tuple(answer for part in parts for answer in part.answers),
            any(part.has_answers for part in parts),
            tuple(prompt for part in parts for prompt in part.prompts),
            tuple(message for part in parts for message in part.messages),
            np.concatenate([part.parent for part in parts]),
            _joined([part.node for part in parts]),
            _joined([part.log_prob for part in parts]),
        )

    def scored(self, rewards: RewardSet) -> Scored:
        """As advantages see it: the reward of a sample is its total by `rewards`, whose scores these are."""
        scores = Scores(rewards.names, self.values, self.status)
        return Scored(
            reward=rewards.total(scores, self.group),
            group=self.group,
            components=rewards.composed(scores, self.group)[0],
            scores=self.values,
            failed=self.status == FAILED,
            weights=np.asarray(rewards.weights),
            names=rewards.names,
            answers=self.answers if self.has_answers else None,
            prompts=self.prompts,
            parent=self.parent,
            node=None if self.node is None else apart(self.group, self.node),
            log_prob=self.log_prob,
            extra=self.extra,
        )


def _joined(parts: Sequence[Any]) -> Any:
    return None if any(part is None for part in parts) else np.concatenate(parts)
