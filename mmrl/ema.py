"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def ema_decay(step: int, decay: float) -> float:
    """Decay at optimizer step `step` (from 1): min((1 + n) / (10 + n), decay), so that early averages forget quickly.

    Source: Flow-GRPO, `flow_grpo/ema.py`, with n the optimizer step.
    """
    return min((1 + step) / (10 + step), decay)


class EMA:
    """Shadow copies of `parameters`, starting as their values."""

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.decay = decay
        self.shadow = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, parameters: Sequence[Tensor], step: int) -> None:
        """shadow <- d shadow + (1 - d) parameter, d the decay at optimizer step `step` (from 1)."""
        torch._foreach_lerp_(self.shadow, [p.detach() for p in parameters], 1.0 - ema_decay(step, self.decay))

    @torch.no_grad()
    def copy_to(self, parameters: Sequence[Tensor]) -> None:
        torch._foreach_copy_(list(parameters), self.shadow)

    @contextmanager
    def swapped_in(self, parameters: Sequence[Tensor]) -> Iterator[None]:
        """Inside, the parameters hold the average."""
        own = [parameter.detach().clone() for parameter in parameters]
        self.copy_to(parameters)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(list(parameters), own)
