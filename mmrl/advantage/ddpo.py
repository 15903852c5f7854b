"""DDPO's advantage: a sample against the latest rewards of its prompt, of this rollout and of earlier ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from mmrl.advantage.stats import FLAT
from mmrl.advantage.types import Advantage, Floats, Scored
from mmrl.errors import UserError


def against_latest(
    reward: Floats, prompts: Sequence[str], earlier: Mapping[str, Floats], keep: int, min_count: int, eps: float = 1e-6
) -> Floats:
    """`(R - mean) / (std + eps)` (population std) `(N,)` over the last `keep` rewards of the prompt, these included; over the whole
    batch while a prompt has fewer than `min_count`. 0 where the rewards compared with are equal, and for NaN.

    `earlier` are rewards of before, by prompt, the latest last. Source: ddpo-pytorch `stat_tracking.py`.
    """
    found = np.zeros(len(reward))
    owner = np.array(prompts, dtype=object)
    everyone = reward[~np.isnan(reward)]
    for prompt in dict.fromkeys(prompts):
        rows = np.flatnonzero((owner == prompt) & ~np.isnan(reward))
        known = np.concatenate([earlier.get(prompt, np.zeros(0)), reward[rows]])[-keep:]
        pool = known if len(known) >= min_count else everyone
        if len(rows) and np.ptp(pool) > FLAT * max(1.0, abs(pool.mean())):
            found[rows] = (reward[rows] - pool.mean()) / (pool.std() + eps)
    return found


class PerPromptHistory(Advantage):
    """DDPO: against the last `keep` rewards of the prompt, which checkpoints hold, or against the batch while there are fewer than
    `min_count`. Groups of the same prompt are one."""

    keep: int = Field(default=32, ge=2)
    min_count: int = Field(default=16, ge=2)
    eps: float = Field(default=1e-6, gt=0)

    @model_validator(mode="after")
    def _can_be_reached(self) -> Self:
        if self.min_count > self.keep:
            raise ValueError(
                f"min_count {self.min_count} is never reached by {self.keep} rewards; use 2 to {self.keep}"
            )
        return self

    @property
    def remembers(self) -> int:
        return self.keep

    def __call__(self, scored: Scored) -> Floats:
        if scored.prompts is None or scored.earlier is None:
            raise UserError("advantage per_prompt_history needs the earlier rewards of the prompts, which nobody kept")
        return against_latest(scored.reward, scored.prompts, scored.earlier, self.keep, self.min_count, self.eps)
