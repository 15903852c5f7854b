"""DPM-Solver++ (2M, midpoint) on rectified flows: deterministic steps of second order, for sampling and for the tail of MixGRPO-Flash.

With lam = log((1 - sigma) / sigma), h = lam' - lam, h0 = lam - lam_before and clean predictions m0 (here), m1 (one step before):
    x' = sigma'/sigma x + (1 - sigma') (1 - exp(-h)) (m0 + h / (2 h0) (m0 - m1))
The first step, and the one to sigma' = 0, are of first order. Source: Lu et al. 2022 (arXiv 2211.01095); MixGRPO `sampling_utils.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_ratio(sigma: float) -> float:
    """`log((1 - sigma) / sigma)`, infinite at 0 and 1."""
    if sigma <= 0:
        return math.inf
    return -math.inf if sigma >= 1 else math.log((1 - sigma) / sigma)


def dpm_step(
    x: Tensor, clean: Tensor, before: Tensor | None, sigma_before: float | None, sigma: float, sigma_next: float
) -> Tensor:
    """From `sigma` to `sigma_next < sigma`. `clean (B, ...)` is the clean prediction at `sigma`, `before` the one at `sigma_before`
    (None: a step of first order)."""
    if sigma_next <= 0:
        return clean
    decay = sigma_next * (1 - sigma) / (sigma * (1 - sigma_next))  # exp(-h)
    slope = clean
    if before is not None and sigma_before is not None:
        h, h0 = log_ratio(sigma_next) - log_ratio(sigma), log_ratio(sigma) - log_ratio(sigma_before)
        if math.isfinite(h) and math.isfinite(h0):
            slope = clean + 0.5 * (h / h0) * (clean - before)
    return sigma_next / sigma * x + (1 - sigma_next) * (1 - decay) * slope


def tail(steps: int, start: int, ratio: float) -> Tensor:
    """Fractional step numbers `(n,)` of the rest of a rollout of `steps` steps from step `start` to the end:
    n = max(2, int((steps - start + 1) ratio)) points, evenly; `start - 1` is the last step of the window.

    Two points at least, so that it always ends at sigma 0. Source: MixGRPO-Flash.
    """
    count = max(2, int((steps - start + 1) * ratio + 1e-9))
    return torch.linspace(start, steps, count, dtype=torch.float64)
