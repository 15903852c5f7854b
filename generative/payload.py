"""What a rollout of a denoising policy keeps for its replay, and how it is cut into chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmrl.generative.conditioning import Ask, Conditioning
from mmrl.generative.plan import DenoisingPlan
from mmrl.rollout import Chunk


@dataclass
class Payload:
    """The trained steps of N samples.

    `latents (N, L, ...)` float32 holds every x_k and x_{k+1} of a trained step once; `slot (S + 1,)` int64 says where
    x_k lies, -1 if it was not kept. `final (N, ...)` float32 is the clean latent. `conditioning` is that of the distinct
    texts, None while text encoders are trained (they are run again, with gradient).
    """

    plan: DenoisingPlan
    schedule: Any
    asks: list[Ask]
    latents: Tensor
    slot: Tensor
    final: Tensor
    conditioning: Conditioning | None

    def pair(self, rows: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """x_k and x_{k+1} of rows `(n,)` at steps `(n,)`."""
        rows, steps = rows.to(self.latents.device), steps.to(self.slot.device)
        before, after = self.slot[steps], self.slot[steps + 1]
        return self.latents[rows, before.to(rows.device)], self.latents[rows, after.to(rows.device)]

    def kept(self) -> Tensor:
        """Which steps can be replayed, `(S,)` bool."""
        return (self.slot[:-1] >= 0) & (self.slot[1:] >= 0)


def storage(steps: Tensor) -> Tensor:
    """Trained steps `(S,)` bool -> slots `(S + 1,)` int64 of the latents to keep, neighbours sharing one."""
    keep = torch.zeros(len(steps) + 1, dtype=torch.bool)
    keep[:-1] |= steps.cpu()
    keep[1:] |= steps.cpu()
    return torch.where(keep, keep.cumsum(0) - 1, -1)


def pairs_in_order(train: Tensor, micro_batch: int) -> Iterator[Chunk]:
    """The (row, step) pairs of `train (N, S)` bool, ordered by step and then by row, `micro_batch` at a time."""
    steps, rows = train.T.nonzero(as_tuple=True)
    for start in range(0, len(rows), micro_batch):
        part = slice(start, start + micro_batch)
        yield Chunk(rows[part].cpu(), steps[part, None].cpu())
