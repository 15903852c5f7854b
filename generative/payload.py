"""What a rollout of a denoising policy keeps for its replay, and how it is cut into chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmrl.generative.conditioning import Ask, Conditioning
from mmrl.generative.plan import DenoisingPlan
from mmrl.rollout import Chunk


@dataclass
class Payload:
    """The trained steps of N samples.

    `latents (M, ...)` float32 holds every x_k and x_{k+1} of a trained step once, shared ones too; `at (N, S + 1)` int64 says where
    the x_k of a sample lies, -1 if it was not kept; `means (M, ...)` are the means of the steps that led to them, where asked
    for. `final (N, ...)` float32 is the clean latent. `conditioning` is that of the distinct asks, None while text encoders are
    trained (they are run again, with gradient).
    """

    plan: DenoisingPlan
    schedule: Any
    asks: list[Ask]
    latents: Tensor
    at: Tensor
    final: Tensor
    conditioning: Conditioning | None
    means: Tensor | None = None

    def pair(self, rows: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """x_k and x_{k+1} of rows `(n,)` at steps `(n,)`."""
        rows, steps = rows.to(self.at.device), steps.to(self.at.device)
        before, after = self.at[rows, steps], self.at[rows, steps + 1]
        return self.latents[before.to(self.latents.device)], self.latents[after.to(self.latents.device)]

    def mean(self, rows: Tensor, steps: Tensor) -> Tensor:
        """The mean of the step k of rows `(n,)` at steps `(n,)` under the policy that drew it. Raises ValueError where none were kept."""
        if self.means is None:
            raise ValueError("the means of the steps were not kept")
        after = self.at[rows.to(self.at.device), steps.to(self.at.device) + 1]
        return self.means[after.to(self.means.device)]

    def kept(self) -> Tensor:
        """Which steps can be replayed, `(N, S)` bool."""
        return (self.at[:, :-1] >= 0) & (self.at[:, 1:] >= 0)


def pairs_in_order(train: Tensor, micro_batch: int) -> Iterator[Chunk]:
    """The (row, step) pairs of `train (N, S)` bool, ordered by step and then by row, `micro_batch` at a time."""
    steps, rows = train.T.nonzero(as_tuple=True)
    for start in range(0, len(rows), micro_batch):
        part = slice(start, start + micro_batch)
        yield Chunk(rows[part].cpu(), steps[part, None].cpu())
