"""Losses on pairs of answers of which one was preferred. Pure functions of summed log-probs."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn.functional import logsigmoid, relu

PreferenceLoss = Literal["dpo", "ipo", "hinge"]


def margin(chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor) -> Tensor:
    """How much more than the reference the policy prefers the chosen answer `(B,)`, from sums of log-probs `(B,)`."""
    return (chosen - reference_chosen) - (rejected - reference_rejected)


def preference_loss(margins: Tensor, beta: float, loss: PreferenceLoss = "dpo", label_smoothing: float = 0.0) -> Tensor:
    """Loss per pair `(B,)` of `margins (B,)`.

    dpo    -log sigmoid(beta m), its labels wrong with probability `label_smoothing` (Rafailov et al. 2023; conservative DPO)
    ipo    (m - 1 / (2 beta))^2 (Azar et al. 2023)
    hinge  max(0, 1 - beta m) (Zhao et al. 2023)
    """
    if loss == "ipo":
        return (margins - 1 / (2 * beta)) ** 2
    if loss == "hinge":
        return relu(1 - beta * margins)
    return -(1 - label_smoothing) * logsigmoid(beta * margins) - label_smoothing * logsigmoid(-beta * margins)
