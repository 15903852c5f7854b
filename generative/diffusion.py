"""Diffusion models (epsilon or v prediction) as policies: DDIM steps, and the denoising loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel
from torch import Tensor

from mmrl.errors import UserError
from mmrl.generative.noise import Noise
from mmrl.generative.plan import DiffusionPlan, DiffusionSampling
from mmrl.generative.policy import DenoisingPolicy
from mmrl.generative.schedule import DiffusionSchedule, ddim_schedule
from mmrl.generative.transition import Prediction, Transition, ddim_transition, expand, rows_mean
from mmrl.rollout import Sample


class DiffusionPolicy(DenoisingPolicy):
    """The network predicts epsilon or v, as the loaded scheduler's `prediction_type` says. Raises UserError for others."""

    plan_type: ClassVar[type[BaseModel]] = DiffusionPlan
    sampling_type: ClassVar[type[BaseModel]] = DiffusionSampling

    def check_train(self, train: Any) -> None:
        super().check_train(train)
        if train.soar is not None:
            raise ValueError("train.soar needs a flow-matching model, and this is a diffusion model; leave it out")

    @property
    def prediction(self) -> Prediction:
        found = self.adapter.pipe.scheduler.config.prediction_type
        if found not in ("epsilon", "v_prediction"):
            raise UserError(f"prediction_type '{found}' is not supported; expected epsilon or v_prediction")
        return found

    def schedule(self, plan: DiffusionPlan) -> DiffusionSchedule:
        return ddim_schedule(self.adapter.pipe.scheduler, plan.num_steps)

    def transition(
        self,
        output: Tensor,
        x: Tensor,
        schedule: DiffusionSchedule,
        steps: Tensor,
        plan: DiffusionPlan,
        *,
        stochastic: bool,
        noise: Tensor | None = None,
        x_next: Tensor | None = None,
    ) -> Transition:
        return ddim_transition(
            output,
            x,
            schedule.alpha_bar[steps],
            schedule.alpha_bar_next[steps],
            plan.sampler.level if stochastic else 0.0,
            self.prediction,
            noise=noise,
            x_next=x_next,
        )

    def clean_at(self, output: Tensor, x: Tensor, schedule: DiffusionSchedule, step: int) -> Tensor:
        a = expand(schedule.alpha_bar[step].expand(len(x)), x)
        if self.prediction == "epsilon":
            return (x - (1 - a).sqrt() * output.float()) / a.sqrt()
        return a.sqrt() * x - (1 - a).sqrt() * output.float()

    def supervised_loss(self, examples: Sequence[Sample], seeds: Sequence[int]) -> Tensor:
        """Denoising, `(B,)` with gradient: x = sqrt(ab) x0 + sqrt(1 - ab) eps, error of epsilon or of
        v = sqrt(ab) eps - sqrt(1 - ab) x0, at a timestep drawn uniformly."""
        spec = self._spec
        x0 = self.latents_of(examples)
        noise = Noise(seeds, x0.shape[1:], self.device)
        views = self._dropped(noise, spec.caption_dropout)
        asks = self.asks(examples, views)
        table = self.adapter.pipe.scheduler.alphas_cumprod.float()
        t = (noise.uniform() * len(table)).long().clamp_max(len(table) - 1)
        eps, ab = noise.draw(), expand(table[t], x0)
        x = ab.sqrt() * x0 + (1 - ab).sqrt() * eps
        output = self.predict(x, t.float(), self.supervised_rows(asks), 1.0)
        target = eps if self.prediction == "epsilon" else ab.sqrt() * eps - (1 - ab).sqrt() * x0
        return rows_mean((output - target) ** 2)
