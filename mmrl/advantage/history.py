"""What is remembered of earlier groups of a prompt (DCPO's smooth standardisation, DDPO's latest rewards).

Per prompt: how often it was drawn, the running mean and standard deviation of its rewards, and the latest of them. Every rank remembers
the same, because the rewards are those of all ranks. Source: DCPO (arXiv 2509.02333, lime-RL/DCPO), ddpo-pytorch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from mmrl.advantage.stats import group_stats
from mmrl.advantage.types import Scored


class Past(NamedTuple):
    """`visits` groups of one prompt, with the mean and standard deviation of their rewards."""

    visits: int = 0
    mean: float = 0.0
    std: float = 0.0


def merged(past: Past, mean: float, std: float) -> Past:
    """One more group: `Q' = (c Q + m) / (c + 1)`, `S'^2 = (c S^2 + s^2 + c / (c + 1) (m - Q)^2) / (c + 1)`."""
    c = past.visits
    variance = (c * past.std**2 + std**2 + c / (c + 1) * (mean - past.mean) ** 2) / (c + 1)
    return Past(c + 1, (c * past.mean + mean) / (c + 1), math.sqrt(variance))


@dataclass
class History:
    """Prompt id -> its past, and its latest `keep` rewards, the latest last."""

    of: dict[str, Past] = field(default_factory=dict)
    latest: dict[str, list[float]] = field(default_factory=dict)
    keep: int = 0

    def known(self, scored: Scored) -> Scored:
        """With `history/visits`, `history/mean` and `history/std` `(N,)` of the samples' prompts before this batch, and `earlier`."""
        assert scored.prompts is not None
        pasts = [self.of.get(prompt, Past()) for prompt in scored.prompts]
        columns = np.array(pasts, dtype=np.float64).reshape(-1, 3).T
        extra = dict(zip(("history/visits", "history/mean", "history/std"), columns, strict=True))
        earlier = {prompt: np.array(self.latest.get(prompt, [])) for prompt in set(scored.prompts)}
        return replace(scored, extra={**scored.extra, **extra}, earlier=earlier)

    def add(self, scored: Scored) -> None:
        """Take in every group of the batch that has a scorable sample."""
        assert scored.prompts is not None
        stats = group_stats(scored.reward, scored.group)
        prompt_of = dict(zip(stats.index.tolist(), scored.prompts, strict=True))
        for number, prompt in prompt_of.items():
            if stats.size[number]:
                past = self.of.get(prompt, Past())
                self.of[prompt] = merged(past, float(stats.mean[number]), float(stats.std[number]))
        for prompt, reward in zip(scored.prompts, scored.reward.tolist(), strict=True):
            if self.keep and not math.isnan(reward):
                self.latest[prompt] = [*self.latest.get(prompt, []), reward][-self.keep :]

    def state(self) -> dict[str, list[float]]:
        """JSON-able; what a checkpoint keeps: visits, mean, std and the latest rewards."""
        return {prompt: [*past, *self.latest.get(prompt, [])] for prompt, past in self.of.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, list[float]], keep: int = 0) -> History:
        """The inverse of `state`."""
        of = {prompt: Past(int(visits), mean, std) for prompt, (visits, mean, std, *_) in state.items()}
        return cls(of, {prompt: rewards for prompt, (_, _, _, *rewards) in state.items() if rewards}, keep)
