"""The loop from noise to clean latents: which steps draw noise, what is kept, what the samples of a group share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmrl.generative.conditioning import Conditioning, Tensors
from mmrl.generative.noise import Noise
from mmrl.generative.payload import storage
from mmrl.generative.transition import Transition
from mmrl.rollout import Draw

if TYPE_CHECKING:
    from mmrl.generative.policy import DenoisingPolicy

Guided = tuple[Tensors, Tensors | None]


@dataclass
class Denoised:
    """Kept latents `(n, L, ...)` float32 on the device; `log_prob`, `std`, `random` `(n, S)` on the CPU; final latents
    `(n, ...)`; `forwards`: rows that went through the network."""

    kept: Tensor
    log_prob: Tensor
    std: Tensor
    random: Tensor
    final: Tensor
    forwards: int


@torch.no_grad()
def denoise(
    policy: DenoisingPolicy,
    draws: Sequence[Draw],
    conditioning: Conditioning,
    plan: Any,
    schedule: Any,
    trained: Tensor | None = None,
) -> Denoised:
    """Denoise one latent per draw in one batch. Without `trained (S,)` bool every step is an ODE step, nothing is kept.

    Samples with one caption and one start noise are the same until the first step that draws noise: up to there they go
    through the network once.
    """
    chosen = [False] * plan.num_steps
    if trained is not None and plan.sampler.kind != "ode":
        chosen = [plan.stochastic == "all" or bool(on) for on in trained]
    slots = [-1] * (plan.num_steps + 1) if trained is None else storage(trained).tolist()
    first = chosen.index(True) if True in chosen else plan.num_steps
    shape = policy.adapter.latent_shape(policy.adapter.size(plan))
    own = Noise([draw.seed for draw in draws], shape, policy.device)
    shared = trained is not None and plan.start_noise == "shared"
    heads, which = _heads(draws, shared=shared and first > 0)
    start = Noise([draws[i].group_seed for i in heads], shape, policy.device) if shared else own

    x = start.draw(policy.adapter.noise_dtype)
    cond = _guided(policy, conditioning, [draws[i] for i in heads], plan)
    found: list[Transition] = []
    kept: list[Tensor] = []
    forwards = 0
    for k, stochastic in enumerate(chosen):
        if k == first and len(heads) < len(draws):
            x, cond = x[which], _guided(policy, conditioning, draws, plan)
        if slots[k] >= 0:
            kept.append(x)
        steps = torch.full((len(x),), k)
        output = policy.predict(x, schedule.timesteps[steps], cond, plan.guidance_scale)
        noise = own.draw() if stochastic else None
        step = policy.transition(output, x, schedule, steps, plan, stochastic=stochastic, noise=noise)
        forwards += len(x) * policy.passes_per_step(plan)
        x = step.x_next
        found.append(step)
    if len(x) < len(draws):
        x = x[which]
    if slots[-1] >= 0:
        kept.append(x)
    log_prob, std, random = (torch.stack(rows, 1) for rows in zip(*(_columns(s, which) for s in found), strict=True))
    return Denoised(torch.stack(kept, 1) if kept else x[:, None][:, :0], log_prob, std, random, x, forwards)


def _heads(draws: Sequence[Draw], shared: bool) -> tuple[list[int], Tensor]:
    """One draw for each (start noise, caption), and for every draw which of them is its own `(n,)`."""
    if not shared:
        return list(range(len(draws))), torch.arange(len(draws))
    keys = [(draw.group_seed, draw.prompt.text) for draw in draws]
    distinct = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return [keys.index(key) for key in distinct], torch.tensor([distinct[key] for key in keys])


def _guided(policy: DenoisingPolicy, conditioning: Conditioning, draws: Sequence[Draw], plan: Any) -> Guided:
    return policy.rows(conditioning, [policy.ask(draw.prompt, plan) for draw in draws], plan)


def _columns(step: Transition, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`log_prob`, `std` and `random` of a step, `(n,)` each, a shared row repeated for every sample that shares it."""
    columns = step.log_prob.cpu(), step.std.flatten().cpu(), step.random.cpu()
    if len(columns[0]) == len(which):
        return columns
    return columns[0][which], columns[1][which], columns[2][which]
