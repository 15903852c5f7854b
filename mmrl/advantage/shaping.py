"""Functions from advantages to advantages."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from mmrl.advantage.types import Floats, Scored, Shaping


class Clamp(Shaping):
    """Advantages limited to `[-max, max]` (Flow-GRPO and DanceGRPO use 5)."""

    elementwise: ClassVar[bool] = True

    max: float = Field(default=5.0, gt=0)

    def __call__(self, advantage: Floats, scored: Scored) -> Floats:
        return np.clip(advantage, -self.max, self.max)
