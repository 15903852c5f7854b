"""What is remembered of earlier groups of a prompt (DCPO's smooth standardisation).

Per prompt: how often it was drawn, and the running mean and standard deviation of its rewards. Every rank remembers the
same, because the rewards are those of all ranks. Source: DCPO (arXiv 2509.02333, lime-RL/DCPO).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mmrl.advantage.stats import group_stats
from mmrl.advantage.types import Floats, Scored


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
    """Prompt id -> its past."""

    of: dict[str, Past] = field(default_factory=dict)

    def look_up(self, scored: Scored) -> Mapping[str, Floats]:
        """`history/visits`, `history/mean` and `history/std` `(N,)` of the samples' prompts, before this batch."""
        assert scored.prompts is not None
        pasts = [self.of.get(prompt, Past()) for prompt in scored.prompts]
        columns = np.array(pasts, dtype=np.float64).reshape(-1, 3).T
        return dict(zip(("history/visits", "history/mean", "history/std"), columns, strict=True))

    def add(self, scored: Scored) -> None:
        """Take in every group of the batch that has a scorable sample."""
        assert scored.prompts is not None
        stats = group_stats(scored.reward, scored.group)
        prompt_of = dict(zip(stats.index.tolist(), scored.prompts, strict=True))
        for number, prompt in prompt_of.items():
            if stats.size[number]:
                past = self.of.get(prompt, Past())
                self.of[prompt] = merged(past, float(stats.mean[number]), float(stats.std[number]))

    def state(self) -> dict[str, list[float]]:
        """JSON-able; what a checkpoint keeps."""
        return {prompt: list(past) for prompt, past in self.of.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, list[float]]) -> History:
        """The inverse of `state`."""
        return cls({prompt: Past(int(visits), mean, std) for prompt, (visits, mean, std) in state.items()})
