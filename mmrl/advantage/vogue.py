"""VOGUE: exploration guided by how much noise in the picture changes what the policy says."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydantic import Field
from torch import Tensor

from mmrl.advantage.types import Floats, Scored, Shaping


def visual_bonus(advantage: Floats, uncertainty: Floats, coef: float) -> Floats:
    """`A + min(coef * u, |A| / 2)`, all `(N,)`: the sign of an advantage never changes, and 0 stays 0. Source: VOGUE
    (arXiv 2510.01444); the cap is ours."""
    return advantage + np.minimum(coef * uncertainty, np.abs(advantage) / 2)


def entropy_bonus(advantage: Tensor, entropy: Tensor, coef: float) -> Tensor:
    """`A + min(coef * H, |A| / 2)` per step: `advantage (n, 1)` or `(n, S)`, `entropy (n, S)` without gradient."""
    return advantage + (coef * entropy).clamp(min=0).minimum(advantage.abs() / 2)


class Vogue(Shaping):
    """A share of every group is drawn through the noisy `view`, `start` falling linearly to `end` over the stage; every
    sample is trained with the original picture. Samples of the noisy branch gain `visual` times the symmetric KL between
    both views (mean over their steps), then every step gains `token` times its entropy; each bonus is at most half of
    the advantage's size. Both coefficients at 0 are the base method.
    """

    visual: float = Field(default=0.1, ge=0)
    token: float = Field(default=0.01, ge=0)
    start: float = Field(default=1.0, ge=0, le=1)
    end: float = Field(default=0.0, ge=0, le=1)
    view: str = "noisy"

    @property
    def measures(self) -> tuple[str, ...]:
        branch = (f"uncertainty/{self.view}",) if self.visual else ()
        return (*branch, "entropy") if self.token else branch

    @property
    def branch(self) -> str | None:
        return self.view if self.visual else None

    def branch_share(self, progress: float) -> float:
        return self.start + (self.end - self.start) * progress

    def __call__(self, advantage: Floats, scored: Scored) -> Floats:
        if not self.visual:
            return advantage
        return visual_bonus(advantage, scored.measured(f"uncertainty/{self.view}"), self.visual)

    def steps(self, advantage: Tensor, measured: Mapping[str, Tensor]) -> Tensor:
        if not self.token:
            return advantage
        return entropy_bonus(advantage, measured["entropy"].to(advantage), self.token)
