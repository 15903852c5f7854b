"""Pictures with a gradient into the steps that drew them (DRaFT, ReFL)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmrl.generative.noise import Noise
from mmrl.generative.transition import rows_mean
from mmrl.rollout import Draw

if TYPE_CHECKING:
    from mmrl.generative.policy import DenoisingPolicy


def drawn_with_gradient(
    policy: DenoisingPolicy, draws: Sequence[Draw], plan: Any, method: str, last: int, at: int, penalty: bool
) -> tuple[Tensor, Tensor]:
    """Pictures `(B, 3, H, W)` in [0, 1] by the ODE of a `Sampling`, and how far predictions moved from the reference `(B,)`.

    `draft`: the last `last` steps have a gradient, each through those after it (DRaFT-K, arXiv 2309.17400). `refl`: the
    step `at` of these alone, whose clean prediction is the picture (ReFL of ImageReward, arXiv 2304.05977). The distance is
    the mean squared difference of velocities at the steps with gradient (0 unless `penalty`).
    """
    schedule, asks = policy.schedule(plan), [policy.ask(draw.prompt, plan) for draw in draws]
    cond = policy.rows(policy.conditioned(policy.needed(asks, plan)), asks, plan)
    shape = policy.adapter.latent_shape(policy.adapter.size(plan))
    x = Noise([draw.seed for draw in draws], shape, policy.device).draw(policy.adapter.noise_dtype)
    first = plan.num_steps - last
    chosen = range(first, plan.num_steps) if method == "draft" else range(first + at, first + at + 1)
    distance = torch.zeros(len(draws), device=x.device)
    output = start = x
    for k in range(chosen.stop):
        start = x
        steps = torch.full((len(x),), k)
        time = schedule.timesteps[steps]
        with torch.set_grad_enabled(k in chosen):
            output = policy.predict(x, time, cond, plan.guidance_scale)
            step = policy.transition(output, x, schedule, steps, plan, stochastic=False)
        if penalty and k in chosen:
            with torch.no_grad(), policy.weights.as_reference() as modules, policy.adapter.using(modules):
                reference = policy.predict(x, time, cond, plan.guidance_scale)
                before = policy.transition(reference, x, schedule, steps, plan, stochastic=False)
            distance = distance + rows_mean((step.output - before.output) ** 2) / len(chosen)
        x = step.mean
    if method == "refl":  # not the end of the step, but where its prediction says the path ends
        x = policy.clean_at(output, start, schedule, chosen.stop - 1)
    return policy.adapter.pixels(x), distance
