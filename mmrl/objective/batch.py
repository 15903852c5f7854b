"""What the loss needs to know about the steps of a chunk, beside the replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mmrl.rollout import Chunk


@dataclass(frozen=True)
class UnitBatch:
    """The steps of one chunk, every array `(n, s)` float32 without gradient.

    `old_log_prob` of the behaviour policy; `advantage`; `weight` from the aggregation (0 = not trained);
    `step_weight` multiplies the policy loss only. `chunk` lets errors name the sample and step of the rollout.
    `view_weight` are the aggregation weights over the samples that look different through a view, by view; `measured` what
    was measured of each step, by name; `progress` is the share (0 to 1) of the stage that is done. `opposed` is a second advantage, whose loss is added
    (see `mmrl.advantage.combine`).
    """

    old_log_prob: Tensor
    advantage: Tensor
    weight: Tensor
    step_weight: Tensor
    chunk: Chunk | None = None
    view_weight: Mapping[str, Tensor] = field(default_factory=dict)
    progress: float = 0.0
    measured: Mapping[str, Tensor] = field(default_factory=dict)
    opposed: Tensor | None = None

    @classmethod
    def of(
        cls,
        chunk: Chunk,
        old_log_prob: Tensor,
        advantage: Tensor,
        weight: Tensor,
        step_weight: Tensor,
        view_weight: Mapping[str, Tensor] | None = None,
        progress: float = 0.0,
        measured: Mapping[str, Tensor] | None = None,
        opposed: Tensor | None = None,
    ) -> UnitBatch:
        """Pick a chunk from arrays over the rollout: all `(N, S)`, `advantage` and `opposed` also `(N,)`; of `measured` those per step."""
        old = chunk.take(old_log_prob)
        return cls(
            old_log_prob=old,
            advantage=chunk.take(advantage).to(old.dtype).expand_as(old),
            weight=chunk.take(weight),
            step_weight=chunk.take(step_weight),
            chunk=chunk,
            view_weight={view: chunk.take(one) for view, one in (view_weight or {}).items()},
            progress=progress,
            opposed=None if opposed is None else chunk.take(opposed).to(old.dtype).expand_as(old),
            measured={name: chunk.take(one) for name, one in (measured or {}).items() if one.dim() == 2},
        )

    def to(self, device: torch.device) -> UnitBatch:
        """The same batch on `device`."""
        moved = {
            name: getattr(self, name).to(device) for name in ("old_log_prob", "advantage", "weight", "step_weight")
        }
        seen = {view: one.to(device) for view, one in self.view_weight.items()}
        measured = {name: one.to(device) for name, one in self.measured.items()}
        opposed = None if self.opposed is None else self.opposed.to(device)
        return replace(self, **moved, view_weight=seen, measured=measured, opposed=opposed)

    def weight_of(self, view: str) -> Tensor:
        """Aggregation weights `(n, s)` over the samples that look different through `view`; all where nothing says so."""
        return self.view_weight.get(view, self.weight)

    @property
    def mask(self) -> Tensor:
        """(n, s) bool: the steps that are trained."""
        return self.weight != 0

    def name(self, row: int, column: int) -> str:
        """Sample and step of an entry, as numbers of the rollout where they are known."""
        if self.chunk is None:
            return f"row {row}, step {column}"
        return f"sample {int(self.chunk.rows[row])}, step {int(self.chunk.steps[row, column])}"
