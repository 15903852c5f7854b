"""What advantages are computed from, and the two seams: `Advantage` and `Shaping`.

Everything here is numpy float64 over the batch gathered from all ranks, so that a group may be spread over ranks and a
statistic never depends on their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mmrl.components import Component
from mmrl.errors import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Scored:
    """N scored samples: `reward (N,)` float64 with NaN = unscorable, `group (N,)` int64.

    Optional: `components (N, K)` float64, the single rewards behind the sum (NaN where a reward failed or does not
    apply) with `weights (K,)` and `names` (K); `scores (N, K)`, where these differ from what the rewards said, and `failed (N, K)`
    bool, where a reward failed; `log_prob (N, S)` and `mask (N, S)` of the behaviour policy. `answers` (N)
    are the parsed answers, None where there is none. `prompts` (N) are the ids of the prompts. `node (N, S)` int64 are the
    nodes of a tree that a sample is in after each step, -1 where it is in none (see `mmrl.rollout.Tree`). `parent (N,)` int64 is
    the group whose sub-question a sample answers, -1 for none (see `mmrl.curriculum.checklist`). `extra` holds
    further numbers `(N,)` float64 by name: `length`, the steps of each sample, what the shapings asked to be measured, and
    what is remembered of the prompts; `earlier` are their latest rewards of before (see `mmrl.advantage.history`).
    Raises ValueError on unequal shapes or an infinite reward.
    """

    reward: Floats
    group: Ints
    components: Floats | None = None
    weights: Floats | None = None
    log_prob: Floats | None = None
    mask: Bools | None = None
    names: tuple[str, ...] = ()
    answers: tuple[str | None, ...] | None = None
    prompts: tuple[str, ...] | None = None
    node: Ints | None = None
    parent: Ints | None = None
    extra: Mapping[str, Floats] = field(default_factory=dict)
    earlier: Mapping[str, Floats] | None = None
    scores: Floats | None = None
    failed: Bools | None = None

    def __post_init__(self) -> None:
        n = len(self.reward)
        if self.reward.shape != (n,) or self.group.shape != (n,):
            raise ValueError(f"reward {self.reward.shape} and group {self.group.shape} must both be (N,)")
        for name in ("components", "scores", "failed", "log_prob", "mask", "node"):
            value = getattr(self, name)
            if value is not None and (value.ndim != 2 or len(value) != n):
                raise ValueError(f"{name} {value.shape} must have {n} rows")
        for name, numbers in self.extra.items():
            if numbers.shape != (n,):
                raise ValueError(f"{name} {numbers.shape} must be ({n},)")
        for name in ("answers", "prompts", "parent"):
            if getattr(self, name) is not None and len(getattr(self, name)) != n:
                raise ValueError(f"there are {len(getattr(self, name))} {name} for {n} samples")
        if np.isinf(self.reward).any():
            raise ValueError(
                f"reward of sample {int(np.isinf(self.reward).argmax())} is infinite; NaN means unscorable"
            )

    @property
    def scorable(self) -> Bools:
        """(N,) bool: the sample has a reward."""
        return ~np.isnan(self.reward)

    def measured(self, name: str) -> Floats:
        """`extra[name] (N,)`; raises UserError where nobody measured it."""
        if name not in self.extra:
            raise UserError(
                f"'{name}' of the samples is needed and was not measured; there is: {', '.join(self.extra)}"
            )
        return self.extra[name]

    def column(self, name: str | None) -> Floats:
        """The scores `(N,)` of the reward `name` as it gave them, or the total without a name; NaN for unscorable samples.
        Raises UserError for a name that is not among the rewards."""
        if name is None:
            return self.reward
        said = self.components if self.scores is None else self.scores
        assert said is not None
        return np.where(self.scorable, said[:, self._place(name)], np.nan)

    def broke_down(self, name: str) -> Bools:
        """(N,) bool: the reward `name` failed on the sample."""
        place = self._place(name)
        return np.zeros(len(self), dtype=bool) if self.failed is None else self.failed[:, place]

    def _place(self, name: str) -> int:
        if self.components is None or name not in self.names:
            raise UserError(f"there is no reward '{name}' among {', '.join(self.names) or 'the rewards'}")
        return self.names.index(name)

    def __len__(self) -> int:
        return len(self.reward)


class Following(NamedTuple):
    """How a slow copy of the weights follows them: every `every` optimizer steps (None: once per rollout), `slow <- d slow +
    (1 - d) w`. d is `decay`, or with a `rate` at optimizer step n `min(max(0, rate (n - start)), decay)`."""

    decay: float
    every: int | None
    rate: float | None = None
    start: int = 0

    def at(self, n: int) -> float:
        """d at optimizer step `n` (from 1)."""
        return self.decay if self.rate is None else min(max(0.0, self.rate * (n - self.start)), self.decay)


class Advantage(Component):
    """Base of the kind `advantage`."""

    reads_tree: ClassVar[bool] = False
    """`Scored.node` must be there."""
    per_step: ClassVar[bool] = False
    """It gives advantages `(N, S)`, one for each step."""

    @property
    def remembers(self) -> int | None:
        """How many of the latest rewards of a prompt must be remembered, beside the statistics of its earlier groups; None when nothing
        need be (see `mmrl.advantage.history`)."""
        return None

    def __call__(self, scored: Scored) -> Floats:
        """Advantages `(N,)`, or `(N, S)` of a rule that is `per_step`: finite everywhere, 0 for unscorable samples."""
        raise NotImplementedError


class Shaping(Component):
    """Base of the kind `shaping`: what is done to the rewards before the advantage rule (`before`), to the advantages
    after it (`__call__`), and to the advantage of single steps (`steps`). By default each leaves things as they are."""

    reads_answers: ClassVar[bool] = False
    """`Scored.answers` must be there."""
    reads_checklist: ClassVar[bool] = False
    """`Scored.parent` must be there: sub-questions are asked."""
    elementwise: ClassVar[bool] = False
    """It changes every advantage by itself, so that it fits those of single steps and of single rewards too."""

    @property
    def measures(self) -> tuple[str, ...]:
        """What must be measured on a rollout (see `mmrl.objective.measure`)."""
        return ()

    @property
    def reads_rewards(self) -> tuple[str, ...]:
        """Names of the stage's rewards that are read one by one."""
        return ()

    @property
    def follows(self) -> Following | None:
        """How the slow copy of the weights moves that the measurements are made with; None when they need none."""
        return None

    @property
    def evaluates(self) -> tuple[str, ...]:
        """Those of `measures` that are measured on held-out samples too."""
        return ()

    def due(self, step: int) -> bool:
        """Whether `measures` are needed at `step` (from 0) of the stage."""
        return True

    @property
    def branch(self) -> str | None:
        """The view through which a share of the samples is drawn, None when all see the original."""
        return None

    def branch_share(self, progress: float) -> float:
        """Which share of a group is drawn through `branch` when `progress` (0 to 1) of the stage is done."""
        return 0.0

    def before(self, scored: Scored) -> Scored:
        """What the advantage rule and the selection see; unscorable samples stay so."""
        return scored

    def __call__(self, advantage: Floats, scored: Scored) -> Floats:
        """Shaped advantages `(N,)`; unscorable samples stay at 0."""
        return advantage

    def metrics(self, scored: Scored) -> dict[str, float]:
        """Numbers for the log, of a rollout or of held-out samples, from all ranks."""
        return {}

    def steps(self, advantage: Tensor, measured: Mapping[str, Tensor]) -> Tensor:
        """Advantages `(n, S)` of the steps from `advantage`, `(n, 1)` or `(n, S)`, of this rank's samples, and what was
        measured on them."""
        return advantage
