"""What advantages are computed from, and the two seams: `Advantage` and `Shaping`.

Everything here is numpy float64 over the batch gathered from all ranks, so that a group may be spread over ranks and a
statistic never depends on their number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmrl.components import Component

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Scored:
    """N scored samples: `reward (N,)` float64 with NaN = unscorable, `group (N,)` int64.

    Optional: `components (N, K)` float64, the single rewards behind the sum (NaN where a reward failed or does not
    apply) with `weights (K,)`; `log_prob (N, S)` and `mask (N, S)` of the behaviour policy.
    Raises ValueError on unequal shapes or an infinite reward.
    """

    reward: Floats
    group: Ints
    components: Floats | None = None
    weights: Floats | None = None
    log_prob: Floats | None = None
    mask: Bools | None = None

    def __post_init__(self) -> None:
        n = len(self.reward)
        if self.reward.shape != (n,) or self.group.shape != (n,):
            raise ValueError(f"reward {self.reward.shape} and group {self.group.shape} must both be (N,)")
        for name in ("components", "log_prob", "mask"):
            value = getattr(self, name)
            if value is not None and (value.ndim != 2 or len(value) != n):
                raise ValueError(f"{name} {value.shape} must have {n} rows")
        if np.isinf(self.reward).any():
            raise ValueError(
                f"reward of sample {int(np.isinf(self.reward).argmax())} is infinite; NaN means unscorable"
            )

    @property
    def scorable(self) -> Bools:
        """(N,) bool: the sample has a reward."""
        return ~np.isnan(self.reward)

    def __len__(self) -> int:
        return len(self.reward)


class Advantage(Component):
    """Base of the kind `advantage`."""

    def __call__(self, scored: Scored) -> Floats:
        """Advantages `(N,)`: finite everywhere, 0 for unscorable samples."""
        raise NotImplementedError


class Shaping(Component):
    """Base of the kind `shaping`: a function from advantages to advantages."""

    def __call__(self, advantage: Floats, scored: Scored) -> Floats:
        """Shaped advantages `(N,)`; unscorable samples stay at 0."""
        raise NotImplementedError
