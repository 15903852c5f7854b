"""Several rewards as one advantage: summed before the rule, after it, or in the loss. Pure functions.

- `rewards`: the rule sees the weighted sum of the rewards.
- `advantages`: the rule sees every reward by itself; their advantages are summed with the weights (MixGRPO, Pref-GRPO), and with `rescale`
  the sum is standardised over the batch (GDPO).
- `losses`: one policy loss per reward, summed with the weights (DanceGRPO). A clipped loss depends on the sign of its advantage and is
  linear in its size, so the sum is the loss of all positive `w A` together plus that of all negative ones: `split`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

import numpy as np

from mmrl.advantage.types import Floats, Scored

Combine = Literal["rewards", "advantages", "losses"]


def single(scored: Scored) -> Iterator[tuple[float, Scored]]:
    """Every trained reward by itself, with its weight. A sample that is unscorable stays so; one that a reward does not apply to
    is left out of that reward's statistics."""
    assert scored.components is not None and scored.weights is not None
    for column, weight in enumerate(scored.weights.tolist()):
        if weight:
            own = np.where(scored.scorable, scored.components[:, column], np.nan)
            yield weight, replace(scored, reward=own)


def summed(scored: Scored, rule: Callable[[Scored], Floats], normalise: bool) -> tuple[Floats, Floats]:
    """`sum w A` and, of the same shape, the sum of its negative summands alone."""
    total = negative = np.zeros(())
    size = sum(abs(weight) for weight, _ in single(scored)) if normalise else 1.0
    for weight, own in single(scored):
        part = weight / size * rule(own)
        total, negative = total + part, negative + np.minimum(part, 0.0)
    return np.asarray(total), np.asarray(negative)


def rescaled(advantage: Floats, scorable: np.ndarray, eps: float = 1e-8) -> Floats:
    """`(A - mean) / (std + eps)` over the scorable samples of the batch (std with n - 1); 0 for the others."""
    own = advantage[scorable]
    if len(own) < 2:
        return np.zeros_like(advantage)
    return np.where(scorable, (advantage - own.mean()) / (own.std(ddof=1) + eps), 0.0)
