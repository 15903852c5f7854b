"""What a flow-matching policy can do with finished samples: noise them again and replay its predictions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from mmrl.generative.forward.errors import weighted
from mmrl.generative.forward.renoise import Noised, Renoised, levels, seed_of
from mmrl.generative.policy import DenoisingPolicy
from mmrl.generative.transition import rows_mean
from mmrl.objective.forward import Forward
from mmrl.rollout import Chunk, Rollout, StepOutput


class ForwardPolicy(DenoisingPolicy):
    """A denoising policy whose rollouts surrogates may also see as noised finished samples. One step of such a rollout is one
    noise level; its log-prob is minus the weighted error of the velocity, and `dist` is a `Noised`."""

    @abstractmethod
    def velocity(self, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """The velocity `(B, ...)` that a network output means at `sigma (B,)`."""

    def check_plan(self, plan: Any, objective: Any) -> None:
        super().check_plan(plan, objective)
        forward = objective.forward
        if forward is None:
            return
        if plan.branch is not None or plan.fan_out is not None or plan.flash is not None:
            raise ValueError(
                "branch, fan_out and flash are about single steps of a rollout, and this objective sees finished samples; leave "
                "them out (fewer steps of second order: num_steps and solver: dpm2m)"
            )
        if plan.stochastic == "selected":
            raise ValueError(
                "stochastic: selected draws noise at the steps that are trained, and this surrogate trains finished samples, so "
                "none would draw any; use sampler: {kind: ode}, or stochastic: all"
            )
        if forward.reference_guidance is not None and all(model != "reference" for _, model in objective.needs):
            raise ValueError(
                "reference_guidance is that of a reference, which nothing here reads; add a term kl, or leave it out"
            )
        for term in (term for term in objective.terms if term.coef):
            if getattr(term, "estimator", "exact") != "exact" or getattr(term, "norm", "v") != "v":
                raise ValueError(
                    "finished samples that are noised again have a velocity and no density; write the KL as "
                    "{name: kl, estimator: exact, norm: v}"
                )
        if objective.weight.needs_std:
            raise ValueError("finished samples that are noised again have no transition std; use steps.weight uniform")
        if forward.levels == "schedule" and forward.times > plan.num_steps:
            raise ValueError(
                f"{forward.times} levels of a schedule of {plan.num_steps} steps; use times {plan.num_steps} or less"
            )

    def as_slow(self) -> AbstractContextManager[Any]:
        """Inside, the slow copy of the weights is what draws."""
        return self.weights.as_slow()

    def renoised(self, rollout: Rollout, forward: Forward) -> Rollout:
        """The finished samples of `rollout` at T noise levels: log-probs are 0 until they are replayed."""
        own, shape = rollout.payload, (len(rollout), forward.times)
        payload = Renoised(
            plan=own.plan,
            forward=forward,
            asks=own.asks,
            final=own.final,
            level=levels(forward, rollout.draws, own.schedule.sigmas),
            group=rollout.group,
            seeds=[seed_of(forward, draw) for draw in rollout.draws],
            conditioning=own.conditioning,
        )
        return Rollout(
            draws=rollout.draws,
            samples=rollout.samples,
            group=rollout.group,
            log_prob=torch.zeros(shape),
            mask=torch.ones(shape, dtype=torch.bool),
            payload=payload,
            stats=rollout.stats,
        )

    def chunks(self, rollout: Rollout, train: Tensor, micro_batch: int) -> Iterator[Chunk]:
        if isinstance(rollout.payload, Renoised):
            return rollout.payload.chunks(train, micro_batch)
        return super().chunks(rollout, train, micro_batch)

    def _score(self, payload: Any, chunk: Chunk, view: str, reference: bool) -> StepOutput:
        if not isinstance(payload, Renoised):
            return super()._score(payload, chunk, view, reference)
        steps, forward, plan = chunk.steps[:, 0].cpu(), payload.forward, payload.plan
        if reference and forward.reference_guidance is not None:
            plan = plan.model_copy(update={"guidance_scale": forward.reference_guidance})
        x, target, clean, level = payload.noised(chunk.rows, steps)
        cond = self._told(payload, plan, chunk, view, reference)
        output = self.predict(x, level * 1000, cond, plan.guidance_scale)
        v = self.velocity(output, x, level)
        level = level.to(x.device)
        log_prob = -weighted(rows_mean((v - target) ** 2), level, forward.weight)
        unit = payload.group[chunk.rows] * forward.times + steps
        dist = Noised(v, target, x, clean, level, unit.to(x.device))
        return StepOutput(log_prob[:, None], dist=dist)
