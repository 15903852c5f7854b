"""Noise schedules of N steps: sigmas and model timesteps of a flow, cumulative alphas of a diffusion.

They are read from a diffusers scheduler as it was loaded, so that a plain pipeline walks the same steps; or a flow
schedule is `shift(linspace(1, 0))`, as DanceGRPO and its successors use. Everything is float32 on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from mmrl.errors import UserError

FlowPrediction = Literal["velocity", "sample"]


@dataclass(frozen=True)
class FlowSchedule:
    """`sigmas (N+1,)` fall to 0; `timesteps (N,)` float32 is what the network is told at each step; `shift` where they are
    `shift(linspace(1, 0))`."""

    sigmas: Tensor
    timesteps: Tensor
    shift: float | None = None

    def at(self, place: Tensor) -> Tensor:
        """Sigmas at fractional step numbers `place (n,)` in [0, N]: on the curve of the shift, else interpolated between steps."""
        steps = len(self.sigmas) - 1
        place = place.double()
        if self.shift is not None:
            return shift_sigmas(1 - place / steps, self.shift).to(self.sigmas.dtype)
        low = place.floor().long().clamp_max(steps - 1)
        share = (place - low).to(self.sigmas.dtype)
        return self.sigmas[low] * (1 - share) + self.sigmas[low + 1] * share

    def time_of(self, sigma: float) -> float:
        """What the network is told at any `sigma` of the schedule's range: interpolated between its own steps."""
        points = [*zip(self.sigmas.tolist(), [*self.timesteps.tolist(), 0.0], strict=True)]
        for (high, early), (low, late) in pairwise(points):
            if low <= sigma <= high:
                return late + (early - late) * (sigma - low) / (high - low)
        raise ValueError(f"sigma {sigma} is outside {points[-1][0]} to {points[0][0]}")

    @property
    def sigma_max(self) -> float:
        """`sigmas[1]`: the largest sigma in the denominator of the flow SDE's noise."""
        return float(self.sigmas[1])


@dataclass(frozen=True)
class DiffusionSchedule:
    """Cumulative alphas before and after each step, `alpha_bar (N,)` and `alpha_bar_next (N,)`; `timesteps (N,)` float32."""

    alpha_bar: Tensor
    alpha_bar_next: Tensor
    timesteps: Tensor


def shift_sigmas(sigmas: Tensor, shift: float) -> Tensor:
    """`s u / (1 + (s - 1) u)`: more of the steps at high noise for s > 1."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def shifted_schedule(num_steps: int, shift: float) -> FlowSchedule:
    """`shift(linspace(1, 0, N + 1))`; the model time is 1000 sigma, not rounded."""
    sigmas = shift_sigmas(torch.linspace(1, 0, num_steps + 1, dtype=torch.float32), shift)
    return FlowSchedule(sigmas, sigmas[:-1] * 1000, shift)


def dynamic_mu(config: Any, image_tokens: int) -> float:
    """Resolution-dependent shift of FLUX and SD3.5: linear in the number of image tokens."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    a, b = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (b - a) / (high - low)
    return image_tokens * slope + a - slope * low


def flow_prediction(scheduler: Any) -> FlowPrediction:
    """What the network of this flow scheduler predicts. Raises UserError for a scheduler that is not a flow's."""
    name, config = type(scheduler).__name__, scheduler.config
    if name == "FlowMatchEulerDiscreteScheduler":
        if config.get("invert_sigmas") or config.get("stochastic_sampling"):
            raise UserError(f"{name} with invert_sigmas or stochastic_sampling is not supported")
        return "velocity"
    if name in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler") and config.get("use_flow_sigmas"):
        if config.prediction_type == "flow_prediction":
            return "velocity"
        if config.prediction_type == "sample":
            return "sample"
        raise UserError(
            f"{name} has prediction_type '{config.prediction_type}'; a flow needs 'flow_prediction' or 'sample'"
        )
    raise UserError(
        f"{name} is not a flow scheduler; expected FlowMatchEulerDiscreteScheduler, or DPMSolverMultistepScheduler or "
        "UniPCMultistepScheduler with use_flow_sigmas: true"
    )


def flow_schedule(scheduler: Any, num_steps: int, mu: float, sigmas: Sequence[float] | None = None) -> FlowSchedule:
    """The sigmas that a diffusers pipeline would use for `num_steps`.

    `mu` is the dynamic shift where the scheduler has one. `sigmas` (N) are what a pipeline
    hands to the scheduler instead of a number of steps (FLUX: `linspace(1, 1/N, N)`). Raises UserError for an unsupported
    scheduler.
    """
    flow_prediction(scheduler)
    scheduler = type(scheduler).from_config(scheduler.config)
    options: dict[str, Any] = {}
    if scheduler.config.get("use_dynamic_shifting"):
        options["mu"] = mu
    if sigmas is not None:
        options["sigmas"] = list(sigmas)
    scheduler.set_timesteps(num_steps, **options)
    return FlowSchedule(scheduler.sigmas.float().cpu(), scheduler.timesteps.float().cpu())


def ddim_schedule(scheduler: Any, num_steps: int) -> DiffusionSchedule:
    """The timesteps and cumulative alphas of DDIMScheduler or CogVideoXDDIMScheduler (which never clips, whatever it says);
    past the end they use the scheduler's final alpha.

    Raises UserError for another scheduler class, or one that clips or thresholds (its mean would not be the network's).
    """
    name, config = type(scheduler).__name__, scheduler.config
    if name not in ("DDIMScheduler", "CogVideoXDDIMScheduler"):
        raise UserError(f"{name} is not supported for diffusion; use DDIMScheduler or CogVideoXDDIMScheduler")
    if name == "DDIMScheduler" and (config.clip_sample or config.thresholding):
        raise UserError("DDIMScheduler with clip_sample or thresholding has no Gaussian step; set both to false")
    scheduler = type(scheduler).from_config(config)
    scheduler.set_timesteps(num_steps)
    steps = scheduler.timesteps.long()
    after = steps - config.num_train_timesteps // num_steps
    table = scheduler.alphas_cumprod.float()
    final = torch.as_tensor(scheduler.final_alpha_cumprod, dtype=torch.float32)
    nxt = torch.where(after >= 0, table[after.clamp_min(0)], final)
    return DiffusionSchedule(table[steps], nxt, steps.float())
