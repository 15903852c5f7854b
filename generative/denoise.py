"""The loop from noise to clean latents: over the nodes of a forest in a rollout, over one latent per sample otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmrl.generative.conditioning import Ask, Conditioning
from mmrl.generative.forest import Forest, forest
from mmrl.generative.noise import Noise
from mmrl.generative.solver import dpm_step, tail
from mmrl.rollout import Draw

if TYPE_CHECKING:
    from mmrl.generative.policy import DenoisingPolicy


@dataclass
class Grown:
    """What a rollout leaves of N samples over S steps: the `forest`; kept latents `(M, ...)` float32 with `at (N, S + 1)` int64, where
    the latent of a sample after k steps lies (-1: not kept), and `means (M, ...)` of the steps that led to them where asked
    for; `log_prob`, `std`, `random` `(N, S)` on the CPU; final latents `(N, ...)`; `forwards`: rows through the network."""

    forest: Forest
    latents: Tensor
    means: Tensor | None
    at: Tensor
    log_prob: Tensor
    std: Tensor
    random: Tensor
    final: Tensor
    forwards: int


class Walk:
    """A set of latents on their way: predictions in micro-batches, counted."""

    def __init__(
        self, policy: DenoisingPolicy, asks: Sequence[Ask], conditioning: Conditioning, plan: Any, schedule: Any
    ) -> None:
        self.policy, self.asks, self.conditioning, self.plan, self.schedule = policy, asks, conditioning, plan, schedule
        self.forwards = 0

    def predict(self, x: Tensor, rows: Sequence[int], timestep: Tensor) -> Tensor:
        """Guided network outputs of latents `x (m, ...)` that stand for the samples `rows`, at one `timestep ()`."""
        found = []
        for at in range(0, len(x), self.plan.micro_batch):
            some = slice(at, at + self.plan.micro_batch)
            asks = [self.asks[i] for i in rows[some]]
            cond = self.policy.rows(self.conditioning, asks, self.plan)
            times = timestep.float().expand(len(asks))
            found.append(self.policy.predict(x[some], times, cond, self.plan.guidance_scale))
        self.forwards += len(x) * self.policy.passes_per_step(self.plan)
        return torch.cat(found)


@torch.no_grad()
def grow(
    policy: DenoisingPolicy,
    draws: Sequence[Draw],
    asks: Sequence[Ask],
    conditioning: Conditioning,
    plan: Any,
    schedule: Any,
    selected: Tensor,
    means: bool = False,
) -> Grown:
    """Denoise one latent per draw under a `DenoisingPlan`; the steps `selected (S,)` bool (and every split) may be trained."""
    trees = forest(plan, draws, selected)
    node, noisy, steps = trees.node, trees.noisy, plan.num_steps
    keep = torch.zeros(len(draws), steps + 1, dtype=torch.bool)
    keep[:, :-1] |= trees.trained
    keep[:, 1:] |= trees.trained
    shape, device = policy.adapter.latent_shape(policy.adapter.size(plan)), policy.device
    own = Noise([draw.seed for draw in draws], shape, device)
    rows, which = distinct(node[:, 0])
    if plan.start_noise == "shared":
        x = Noise([draws[i].group_seed for i in rows], shape, device).draw(policy.adapter.noise_dtype)
    else:
        x = own.draw(policy.adapter.noise_dtype)[rows]
    walk = Walk(policy, asks, conditioning, plan, schedule)
    store = _Store(len(draws), steps, means)
    columns = {name: torch.zeros(len(draws), steps) for name in ("log_prob", "std")}
    random = torch.zeros(len(draws), steps, dtype=torch.bool)
    wants_clean = trees.ends < steps or plan.solver == "dpm2m" or plan.decode == "clean"
    before: Tensor | None = None
    clean = x
    for k in range(steps):
        store.keep(k, x, keep[:, k], which)
        if k == trees.ends:
            x, clean = _finish(walk, x, rows, before, k)
            break
        output = walk.predict(x, rows, schedule.timesteps[k])
        if wants_clean:
            clean = policy.clean_at(output, x, schedule, k)
        rows, below = distinct(node[:, k + 1])
        parent = which[torch.tensor(rows)].to(device)
        drawn = noisy[rows, k]
        children = torch.empty(len(rows), *x.shape[1:], device=device)
        centre = torch.empty_like(children) if means else None
        for stochastic in (True, False):
            some = (drawn == stochastic).nonzero().flatten()
            if not len(some):
                continue
            of = parent[some.to(device)]
            if not stochastic and plan.solver == "dpm2m":
                earlier = None if before is None else before[of]
                children[some.to(device)] = _solved(schedule, k, x[of], clean[of], earlier)
                continue
            noise = _noise(trees, plan, own, [rows[i] for i in some.tolist()], k, shape, device) if stochastic else None
            index = torch.full((len(some),), k)
            step = policy.transition(output[of], x[of], schedule, index, plan, stochastic=stochastic, noise=noise)
            children[some.to(device)] = step.x_next
            if centre is not None:
                centre[some.to(device)] = step.mean
            found = torch.zeros(len(rows), 3)
            found[some] = torch.stack([step.log_prob.cpu(), step.std.flatten().cpu(), step.random.float().cpu()], 1)
            mine = torch.isin(below, some)
            columns["log_prob"][mine, k], columns["std"][mine, k] = found[below[mine], 0], found[below[mine], 1]
            random[mine, k] = found[below[mine], 2] > 0
        x, which = children, below
        if wants_clean:
            before = clean = clean[parent]
        store.centre(centre)
    else:
        store.keep(steps, x, keep[:, steps], which)
    final = clean if plan.decode == "clean" else x
    latents, centres, at = store.joined(x)
    return Grown(
        trees,
        latents,
        centres,
        at,
        columns["log_prob"],
        columns["std"],
        random & trees.trained,
        final[which.to(device)],
        walk.forwards,
    )


@torch.no_grad()
def solve(
    policy: DenoisingPolicy,
    draws: Sequence[Draw],
    asks: Sequence[Ask],
    conditioning: Conditioning,
    plan: Any,
    schedule: Any,
) -> Tensor:
    """Final latents `(n, ...)` without noise on the way, each from the start noise of its own seed, under a `Sampling`."""
    shape = policy.adapter.latent_shape(policy.adapter.size(plan))
    x = Noise([draw.seed for draw in draws], shape, policy.device).draw(policy.adapter.noise_dtype)
    walk, rows = Walk(policy, asks, conditioning, plan, schedule), list(range(len(draws)))
    before: Tensor | None = None
    for k in range(plan.num_steps):
        output = walk.predict(x, rows, schedule.timesteps[k])
        if plan.solver == "dpm2m":
            clean = policy.clean_at(output, x, schedule, k)
            x, before = _solved(schedule, k, x, clean, before), clean
        else:
            index = torch.full((len(x),), k)
            x = policy.transition(output, x, schedule, index, plan, stochastic=False).x_next
    return x


def distinct(ids: Tensor) -> tuple[list[int], Tensor]:
    """The first row of every distinct id, in order, and for every row which of them it is `(N,)`."""
    order: dict[int, int] = {}
    first: list[int] = []
    for row, one in enumerate(ids.tolist()):
        if one not in order:
            order[one] = len(first)
            first.append(row)
    return first, torch.tensor([order[one] for one in ids.tolist()])


def _noise(
    trees: Forest, plan: Any, own: Noise, rows: Sequence[int], k: int, shape: Sequence[int], device: torch.device
) -> Tensor:
    """Standard normal noise of the edges from depth k to the nodes of the samples `rows`, `(m, ...)`."""
    if plan.branch is None:
        return own.draw_some(rows)
    pairs = [trees.seeds[int(trees.node[row, k + 1])] for row in rows]
    single = Noise([seed for _, seed in pairs], shape, device).draw()
    if not trees.split[k]:
        return single
    if plan.branch.noise == "scaled":
        return plan.branch.spread * single
    common = Noise([seed for seed, _ in pairs], shape, device).draw()
    q = plan.branch.spread
    return (common + q * single) / (1 + q**2) ** 0.5


def _solved(schedule: Any, k: int, x: Tensor, clean: Tensor, before: Tensor | None) -> Tensor:
    sigmas = schedule.sigmas
    earlier = float(sigmas[k - 1]) if k else None
    return dpm_step(x, clean, before, earlier, float(sigmas[k]), float(sigmas[k + 1]))


def _finish(walk: Walk, x: Tensor, rows: Sequence[int], before: Tensor | None, start: int) -> tuple[Tensor, Tensor]:
    """The rest of a Flash rollout from step `start`: second order from its first step on, since the steps before have left their
    clean predictions. Returns the final latents and the last clean predictions."""
    sigmas = walk.schedule.sigmas
    points = walk.schedule.at(tail(walk.plan.num_steps, start, walk.plan.flash.ratio)).tolist()
    earlier = float(sigmas[start - 1]) if start else None
    clean = x
    for sigma, after in pairwise(points):
        output = walk.predict(x, rows, torch.tensor(walk.schedule.time_of(sigma)))
        clean = walk.policy.clean(output, x, torch.full((len(x),), sigma))
        x = dpm_step(x, clean, before, earlier, sigma, after)
        before, earlier = clean, sigma
    return x, clean


class _Store:
    """Latents that the replay needs, each once."""

    def __init__(self, samples: int, steps: int, means: bool) -> None:
        self.at = torch.full((samples, steps + 1), -1, dtype=torch.int64)
        self.latents: list[Tensor] = []
        self.means: list[Tensor] | None = [] if means else None
        self.last: Tensor | None = None
        self.count = 0

    def centre(self, means: Tensor | None) -> None:
        """The means of the steps that led to the latents that are kept next."""
        self.last = means

    def keep(self, k: int, x: Tensor, wanted: Tensor, which: Tensor) -> None:
        """Keep those of the nodes `x (m, ...)` after k steps that a sample `wanted (N,)` bool is in (`which (N,)`)."""
        nodes = which[wanted].unique()
        if not len(nodes):
            return
        place = torch.full((len(x),), -1, dtype=torch.int64)
        place[nodes] = torch.arange(len(nodes)) + self.count
        self.at[wanted, k] = place[which[wanted]]
        self.latents.append(x[nodes.to(x.device)])
        if self.means is not None:
            self.means.append((x if self.last is None else self.last)[nodes.to(x.device)])
        self.count += len(nodes)

    def joined(self, like: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """`latents (M, ...)`, `means (M, ...)` and `at (N, S + 1)`."""
        latents = torch.cat(self.latents) if self.latents else like[:0]
        means = None if self.means is None else (torch.cat(self.means) if self.means else like[:0])
        return latents, means, self.at
