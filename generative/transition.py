"""One denoising step as a Gaussian: mean, full std, sample and log-prob. The same function serves rollout and replay.

Symbols: `sigma` is the noise level of `x`, `sigma'` that of the next latent, `D = sigma - sigma' > 0`; `v` the velocity
(eps - x0), so `x0h = x - sigma v` and `eh = x + (1 - sigma) v`. All arithmetic is float32, whatever the model ran in.
`std` is always the *full* standard deviation of the transition (`g sqrt(D)`), never `g` alone.

Rectified flow, stochastic (one form, two choices of g):
    mu = x - D (v + g^2 / (2 sigma) eh),   s = g sqrt(D),   x' = mu + s z
    flow_sde (Flow-GRPO):   g = a sqrt(sigma / (1 - min(sigma, sigma_max))), and at most c / sqrt(D) where truncated (LongCat-Video)
    dance_sde (DanceGRPO):  g = a
cps (coefficient-preserving): s = sigma' sin(a pi/2), mu = (1 - sigma') x0h + sigma' cos(a pi/2) eh
ode: mu = x - D v, no density
log-prob = mean over all non-batch dims of [-(x' - mu)^2 / (2 s^2) - log s - 0.5 log 2 pi]; cps: -mean (x' - mu)^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

FlowKind = Literal["flow_sde", "dance_sde", "cps", "ode"]
Prediction = Literal["epsilon", "v_prediction"]
KLNorm = Literal["s2", "g2", "v"]


@dataclass
class Transition:
    """One step of B rows. Float32 throughout; gradient flows through `mean`, `output` and `log_prob`.

    `x_next (B, ...)` is detached; `log_prob (B,)` is 0 where `random (B,)` bool is False (the row's step has no density);
    `mean (B, ...)`; `std (B, 1, ...)` is the full transition std; `dt (B, 1, ...)` is D (1 for DDIM, which has none);
    `output (B, ...)` is the velocity (flow) or the network output (DDIM); `kind` names the sampler; `drawn_mean (B, ...)`, where
    the rollout kept it, is the mean that x_next was drawn with.
    """

    x_next: Tensor
    log_prob: Tensor
    mean: Tensor
    std: Tensor
    dt: Tensor
    random: Tensor
    output: Tensor
    kind: str
    drawn_mean: Tensor | None = None


def expand(value: Tensor | float, like: Tensor) -> Tensor:
    """A number or `(B,)` tensor as float32 `(B, 1, ...)` that broadcasts over the rows of `like`."""
    rows = torch.as_tensor(value, dtype=torch.float32, device=like.device).expand(like.shape[0])
    return rows.reshape(-1, *([1] * (like.dim() - 1)))


def rows_mean(values: Tensor) -> Tensor:
    """Mean over every dimension but the first: `(B, ...) -> (B,)`."""
    return values.flatten(1).mean(1)


def flow_transition(
    v: Tensor,
    x: Tensor,
    sigma: Tensor | float,
    sigma_next: Tensor | float,
    *,
    kind: FlowKind,
    level: float,
    sigma_max: Tensor | float,
    truncate: float | None = None,
    noise: Tensor | None = None,
    x_next: Tensor | None = None,
) -> Transition:
    """A step of a rectified-flow model from `sigma` to `sigma_next`, each a number or one value per row `(B,)`.

    Give `noise` to sample (rollout) or `x_next` to score a stored sample (replay); neither is needed for `ode`.
    `sigma_max` is `sigmas[1]` of the schedule: it stands in for sigma in the denominator of flow_sde above it, where
    1 - sigma would vanish. Deviation "sigma cap": Flow-GRPO puts it in the place of sigma == 1 only, here of every sigma
    above it. On a schedule that is the first sigma alone, so the two differ only where the schedule starts below 1 (say at
    0.999, whose own denominator would give 30 times the noise). Raises ValueError when a stochastic step gets neither noise nor x_next.
    """
    v, x = v.float(), x.float()
    s0, s1 = expand(sigma, x), expand(sigma_next, x)
    dt = s0 - s1
    if kind == "ode":
        mean, std = x - dt * v, torch.zeros_like(s0)
    elif kind == "cps":
        mean, std = _cps(v, x, s0, s1, level)
    else:
        g = _flow_g(s0, expand(sigma_max, x), level) if kind == "flow_sde" else torch.full_like(s0, level)
        if truncate is not None:
            g = torch.minimum(g, truncate / dt.sqrt())
        mean = x - dt * (v + g**2 / (2 * s0) * (x + (1 - s0) * v))
        std = g * dt.sqrt()
    return _finish(v, mean, std, dt, kind, noise, x_next)


def ddim_transition(
    model_output: Tensor,
    x: Tensor,
    ab_t: Tensor | float,
    ab_prev: Tensor | float,
    eta: float,
    prediction_type: Prediction,
    *,
    noise: Tensor | None = None,
    x_next: Tensor | None = None,
) -> Transition:
    """A DDIM step with noise `eta` (DDPO) from cumulative alpha `ab_t` to `ab_prev`, numbers or `(B,)`.

    s^2 = eta^2 (1 - ab_prev)/(1 - ab_t) (1 - ab_t/ab_prev), mu = sqrt(ab_prev) x0 + sqrt(1 - ab_prev - s^2) e.
    With ab_prev = 1 the step is deterministic: s = 0 and `random` is False. eta = 0 is the ODE.
    """
    out, x = model_output.float(), x.float()
    a, ap = expand(ab_t, x), expand(ab_prev, x)
    if prediction_type == "epsilon":
        eps = out
        x0 = (x - (1 - a).sqrt() * out) / a.sqrt()
    else:
        eps = a.sqrt() * out + (1 - a).sqrt() * x
        x0 = a.sqrt() * x - (1 - a).sqrt() * out
    variance = (eta**2 * (1 - ap) / (1 - a) * (1 - a / ap)).clamp_min(0)
    mean = ap.sqrt() * x0 + (1 - ap - variance).clamp_min(0).sqrt() * eps
    kind = "ddim" if eta > 0 else "ode"
    return _finish(out, mean, variance.sqrt(), torch.ones_like(a), kind, noise, x_next)


def kl_divergence(p: Transition, q: Transition, norm: KLNorm) -> Tensor:
    """KL(p || q) of two steps that share their std, `(B,)`, with gradient through both means.

    s2: mean (mu_p - mu_q)^2 / (2 s^2), the exact KL (a mean over dims, as the log-prob).
    g2: divided by 2 g^2 instead, which is s2 times D (the convention behind Flow-GRPO's published coefficients); for cps
        the denominator is 1, as in its log-prob. v: mean (v_p - v_q)^2. Deterministic rows give 0 under s2 and g2.
    Raises ValueError for g2 with DDIM, whose steps have no D.
    """
    if norm == "v":
        return rows_mean((p.output - q.output) ** 2)
    if norm == "g2" and p.kind not in ("flow_sde", "dance_sde", "cps"):
        raise ValueError(f"the KL norm 'g2' is defined for flow samplers, not for '{p.kind}'; use 's2' or 'v'")
    square = rows_mean((p.mean - q.mean) ** 2)
    if norm == "g2" and p.kind == "cps":
        return square.where(p.random, torch.zeros_like(square))
    scale = (2 * _positive(p.std) ** 2).flatten()
    kl = square / scale * (p.dt.flatten() if norm == "g2" else 1.0)
    return kl.where(p.random, torch.zeros_like(kl))


def _flow_g(sigma: Tensor, sigma_max: Tensor, level: float) -> Tensor:
    return level * (sigma / (1 - torch.minimum(sigma, sigma_max))).sqrt()


def _cps(v: Tensor, x: Tensor, s0: Tensor, s1: Tensor, level: float) -> tuple[Tensor, Tensor]:
    angle = level * math.pi / 2
    mean = (1 - s1) * (x - s0 * v) + s1 * math.cos(angle) * (x + (1 - s0) * v)
    return mean, s1 * math.sin(angle)


def _positive(std: Tensor) -> Tensor:
    """`std` with 1 in place of 0, so that rows without a density divide by 1 instead of 0."""
    return torch.where(std > 0, std, torch.ones_like(std))


def _finish(
    output: Tensor, mean: Tensor, std: Tensor, dt: Tensor, kind: str, noise: Tensor | None, x_next: Tensor | None
) -> Transition:
    random = (std > 0).flatten()
    if x_next is None:
        if noise is None and bool(random.any()):
            raise ValueError(f"a stochastic step ('{kind}') needs noise to sample or x_next to score")
        x_next = mean if noise is None else mean + std * noise.float()
    x_next = x_next.detach().float()
    square = (x_next - mean) ** 2
    if kind == "cps":
        log_prob = -rows_mean(square)
    else:
        safe = _positive(std)
        log_prob = rows_mean(-square / (2 * safe**2) - safe.log() - 0.5 * math.log(2 * math.pi))
    log_prob = log_prob.where(random, torch.zeros_like(log_prob))
    return Transition(x_next, log_prob, mean, std, dt, random, output, kind)
