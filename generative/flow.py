"""Rectified-flow models as policies: SDE, CPS and ODE steps, and the flow-matching loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import BaseModel
from torch import Tensor

from mmrl.generative.conditioning import Ask
from mmrl.generative.forward.policy import ForwardPolicy
from mmrl.generative.forward.soar import between, levels_above, mixed, stray
from mmrl.generative.noise import Noise
from mmrl.generative.plan import FlowPlan, FlowSampling
from mmrl.generative.schedule import (
    FlowPrediction,
    FlowSchedule,
    flow_prediction,
    flow_schedule,
    shift_sigmas,
    shifted_schedule,
)
from mmrl.generative.transition import Transition, expand, flow_transition, rows_mean
from mmrl.rollout import Sample

LOSS_POWER = {"velocity": 2, "balanced": 1, "sample": 0}


class FlowPolicy(ForwardPolicy):
    """The network predicts the velocity, or the clean sample, as the loaded scheduler's `prediction_type` says."""

    plan_type: ClassVar[type[BaseModel]] = FlowPlan
    sampling_type: ClassVar[type[BaseModel]] = FlowSampling

    @property
    def prediction(self) -> FlowPrediction:
        return flow_prediction(self.adapter.pipe.scheduler)

    def schedule(self, plan: FlowSampling) -> FlowSchedule:
        if plan.shift is not None:
            return shifted_schedule(plan.num_steps, plan.shift)
        mu, sigmas = self.adapter.mu(self.adapter.size(plan), plan.num_steps), self.adapter.sigmas(plan.num_steps)
        return flow_schedule(self.adapter.pipe.scheduler, plan.num_steps, mu, sigmas)

    def transition(
        self,
        output: Tensor,
        x: Tensor,
        schedule: FlowSchedule,
        steps: Tensor,
        plan: FlowPlan,
        *,
        stochastic: bool,
        noise: Tensor | None = None,
        x_next: Tensor | None = None,
    ) -> Transition:
        sigma = schedule.sigmas[steps]
        kind: Any = plan.sampler.kind if stochastic else "ode"  # a Sampling has no sampler
        return flow_transition(
            self.velocity(output, x, sigma),
            x,
            sigma,
            schedule.sigmas[steps + 1],
            kind=kind,
            level=plan.sampler.level if stochastic else 0.0,
            truncate=plan.sampler.truncate if stochastic else None,
            sigma_max=schedule.sigma_max,
            noise=noise,
            x_next=x_next,
        )

    def clean(self, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """The clean latents `(B, ...)` that a network output means at `sigma (B,)`: itself, or x - sigma v."""
        return output.float() if self.prediction == "sample" else x - expand(sigma, x) * output.float()

    def clean_at(self, output: Tensor, x: Tensor, schedule: FlowSchedule, step: int) -> Tensor:
        return self.clean(output, x, schedule.sigmas[step].expand(len(x)))

    def velocity(self, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """The velocity `(B, ...)` that a network output means at `sigma (B,)`: itself, or (x - x0)/sigma."""
        return output if self.prediction == "velocity" else (x - output) / expand(sigma, x)

    def supervised_loss(self, examples: Sequence[Sample], seeds: Sequence[int]) -> Tensor:
        """Flow matching, `(B,)` with gradient: x = (1 - sigma) x0 + sigma eps, error of the velocity against eps - x0.

        `train.loss` weighs the squared error of the clean sample by 1/sigma^2 (`velocity`: the plain flow-matching loss),
        1/sigma (`balanced`) or 1 (`sample`). Where the network predicts samples sigma is no less than `min_sigma` there.
        `train.soar` adds the points that the model's own steps lead to (see `mmrl.generative.forward.soar`).
        """
        spec = self._spec
        x0 = self.latents_of(examples)
        noise = Noise(seeds, x0.shape[1:], self.device)
        views = self._dropped(noise, spec.caption_dropout)
        asks = self.asks(examples, views)
        u = noise.uniform().clamp(1e-4, 1 - 1e-4)
        index = torch.sigmoid(torch.special.ndtri(u)) if spec.noise == "logit_normal" else u
        sigma = shift_sigmas(index, spec.noise_shift)
        eps, s = noise.draw(), expand(sigma, x0)
        x = (1 - s) * x0 + s * eps
        path = self._matching(x, sigma, x0, eps - x0, asks)
        if spec.soar is None or spec.soar.lam == 0:
            return path
        after = shift_sigmas((index - 1 / spec.soar.num_steps).clamp_min(0), spec.noise_shift)
        where = stray(x, self._guided_velocity(x, sigma, asks, spec.soar.guidance_scale), sigma, after)
        others = []
        for _ in range(spec.soar.draws):
            level = levels_above(after, noise.uniform().clamp_min(1e-4))
            point = between(where, eps, after, level)
            others.append(self._matching(point, level, x0, (point - x0) / expand(level, x0), asks))
        return mixed(path, torch.stack(others), spec.soar.lam)

    def _matching(self, x: Tensor, sigma: Tensor, clean: Tensor, velocity: Tensor, asks: Sequence[Ask]) -> Tensor:
        """The error `(B,)` at `x (B, ...)`, `sigma (B,)`, whose clean sample and velocity are given, as `train.loss` weighs it."""
        output, s = self.predict(x, sigma * 1000, self.supervised_rows(asks), 1.0), expand(sigma, x)
        power = LOSS_POWER[self._spec.loss]
        if self.prediction == "sample":
            return rows_mean((output - clean) ** 2 / s.clamp_min(self._spec.min_sigma) ** power)
        return rows_mean((output - velocity) ** 2 * s ** (2 - power))

    @torch.no_grad()
    def _guided_velocity(self, x: Tensor, sigma: Tensor, asks: Sequence[Ask], scale: float) -> Tensor:
        plan = self.sampling_type(guidance_scale=scale)
        cond = self.rows(self.conditioned(self.needed(asks, plan)), asks, plan)
        return self.velocity(self.predict(x, sigma * 1000, cond, scale), x, sigma)
