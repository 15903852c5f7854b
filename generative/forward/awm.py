"""AWM: the clipped ratio of PPO on a pseudo log-prob, minus the weighted error of the velocity on the finished sample."""

from __future__ import annotations

from mmrl.generative.forward.base import ForwardSurrogate
from mmrl.objective.forward import Forward, Weighting
from mmrl.objective.surrogate import Clip


class Awm(ForwardSurrogate, Clip):
    """AWM: log p = -w(||v - u||^2, t). It needs a KL (estimator exact, norm v) or narrow clip bounds: without both it collapses."""

    weight: Weighting = "ghuber"
    """w: the squared error, times t or t^2, or t times its root (huber) or fourth root (ghuber)."""

    @property
    def reads_old(self) -> bool:
        return True

    @property
    def forward(self) -> Forward:
        return self.view(weight=self.weight)
