"""Kept samples scored again, through the code that scored them in training. n samples, K rewards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mmrl.advantage.history import History
from mmrl.advantage.types import Floats, Ints, Scored
from mmrl.config.schema import RLStage
from mmrl.curriculum.refill import admitted
from mmrl.errors import UserError
from mmrl.objective.measure import is_per_step
from mmrl.objective.objective import Objective
from mmrl.replay.kept import Kept
from mmrl.reward import RewardSet
from mmrl.rollout import Scores
from mmrl.stages.rounds import Table

CLOSE = 1e-9
"""Advantages of a group alone and among others that differ by no more (relative) are the same."""


@dataclass(frozen=True)
class Rescored:
    """`values (n, K)` and `status (n, K)` of the new rewards, `total (n,)` and `advantage (n,)` from them, a line per failure."""

    values: Floats
    status: Ints
    total: Floats
    advantage: Floats
    messages: tuple[str, ...]


class Rescorer:
    """Scores steps again, one after another in their order. Raises UserError at once for rewards and rules that need what was not kept.

    `section` is the stage as it ran; `steps` the numbers of those that will come, of all that there are.
    """

    def __init__(self, rewards: RewardSet, objective: Objective, section: RLStage, steps: list[int]) -> None:
        self.rewards, self.objective, self.section = rewards, objective, section
        rewards.check_trained()
        rule = objective.advantage
        if rule.per_step or objective.reads_tree:
            raise UserError(
                f"advantage {_called(rule)} is about the steps of a tree, and of kept samples only the end is stored; give another "
                "one in `objective:`"
            )
        self.history = None if rule.remembers is None else History(keep=rule.remembers)
        memory = [f"advantage {_called(rule)}"] if self.history is not None else []
        memory += [f"transform {_called(one)} of reward '{name}'" for name, use in zip(rewards.names, rewards.uses, strict=True)
                   for one in use.then if one.remembers]  # fmt: skip
        if memory and steps != list(range(1, len(steps) + 1)):
            raise UserError(
                f"{memory[0]} remembers the steps before, so every step from the first one on must be there, and these are "
                f"{', '.join(map(str, steps[:8]))}{', ...' if len(steps) > 8 else ''}; train with keep_samples.every: 1, or replay "
                "without it"
            )
        self.memory = memory

    def __call__(self, kept: Kept, done: Callable[[int], None] = lambda number: None) -> Rescored:
        """The samples of a step under the new rewards; `done` is told how many more were scored."""
        self._check(kept)
        scores = self._scored(kept, done)
        table = self._table(kept, scores, np.arange(len(kept.samples)))
        total, scored = self._seen(table)
        advantage = self.objective.advantages(scored)
        if not kept.whole:
            self._check_apart(kept, scores, advantage)
        if self.history is not None:
            self.history.add(scored)
        self.rewards.remember(scores, table.group)
        return Rescored(scores.values, scores.status, total, advantage, table.messages)

    def _check(self, kept: Kept) -> None:
        if kept.advantage.ndim != 1:
            raise UserError(
                f"step {kept.step} was trained with an advantage for every step of a sample, which one per sample does not compare with"
            )
        if self.memory and not kept.whole:
            raise UserError(f"{self.memory[0]} remembers all samples, and keep_samples.groups kept some of each step")
        for shape in self.objective.shaping:
            for name in shape.measures if shape.due(kept.step - 1) else ():
                if not is_per_step(name) and name not in kept.extra:
                    raise UserError(
                        f"shaping {_called(shape)} needs '{name}', which a policy measures while it trains and this run did not "
                        f"(it has: {', '.join(kept.extra)}); leave the shaping out"
                    )

    def _scored(self, kept: Kept, done: Callable[[int], None]) -> Scores:
        """Scores of all samples, in the parts in which they were scored in training."""
        values = np.full((len(kept.samples), len(self.rewards.names)), np.nan)
        status = np.zeros(values.shape, dtype=np.int64)
        messages: list[str] = []
        for place in np.unique(kept.place, axis=0):
            rows = np.flatnonzero((kept.place == place).all(1))
            samples = [kept.samples[row] for row in rows]
            for sample in samples:
                for left in ("graded", "components"):
                    sample.meta.pop(left, None)
            part = self.rewards.score(samples, kept.group[rows].tolist())
            values[rows], status[rows] = part.values, part.status
            messages += part.messages
            done(len(rows))
        return Scores(self.rewards.names, values, status, messages)

    def _table(self, kept: Kept, scores: Scores, rows: Ints) -> Table:
        samples = [kept.samples[row] for row in rows]
        said = [sample.meta.get("answer") for sample in samples]
        return Table(
            values=scores.values[rows],
            status=scores.status[rows],
            group=kept.compared[rows],
            extra={name: value[rows] for name, value in kept.extra.items()},
            answers=tuple(None if one is None else str(one) for one in said),
            has_answers=any("answer" in sample.meta for sample in samples),
            prompts=tuple(sample.prompt.id for sample in samples),
            messages=tuple(scores.messages),
            parent=kept.parent[rows],
        )

    def _seen(self, table: Table) -> tuple[Floats, Scored]:
        """The total and what the advantages see of it, as in `mmrl.stages`."""
        raw = table.scored(self.rewards)
        scored = self.objective.shaped(raw if self.history is None else self.history.known(raw))
        refill = self.section.curriculum.refill
        if refill is not None:
            scored = admitted(scored, self.section.prompts_per_step, refill.low, refill.high)
        return raw.reward, scored

    def _check_apart(self, kept: Kept, scores: Scores, advantage: Floats) -> None:
        """Of a part of a step only advantages that look at nothing but their group (and its sub-questions) can be told."""
        family = np.where(kept.parent < 0, kept.group, kept.parent)
        for key in np.unique(family):
            rows = np.flatnonzero(family == key)
            alone = self.objective.advantages(self._seen(self._table(kept, scores, rows))[1])
            if not np.allclose(alone, advantage[rows], rtol=CLOSE, atol=CLOSE):
                raise UserError(
                    f"the advantages look beyond their group, and keep_samples.groups kept {len(kept.samples)} of the {kept.drawn} "
                    f"samples of step {kept.step}; train with keep_samples.groups: null, or replay with an advantage that reads its "
                    "group alone (such as {name: group, scale: group})"
                )


def _called(part: object) -> str:
    return type(part).__name__.lower()
