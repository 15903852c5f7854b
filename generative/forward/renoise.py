"""Finished samples noised again: the levels, and what a rollout becomes whose steps they are.

x_t = (1 - t) x0 + t eps with the velocity target u = eps - x0. Shapes: N samples, T levels each, n rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmrl.generative.conditioning import Ask, Conditioning
from mmrl.generative.noise import Noise
from mmrl.generative.schedule import shift_sigmas
from mmrl.generative.transition import expand
from mmrl.objective.forward import Forward
from mmrl.rollout import Chunk, Draw
from mmrl.seeding import derive_seed


@dataclass
class Noised:
    """What a loss on finished samples reads of n rows, float32: `output` is the predicted velocity `(n, ...)`, with gradient
    where it has one; `target` u, `x` x_t and `clean` x0 `(n, ...)`; `level` t `(n,)`; rows of one `group (n,)` int64 are samples of one group at
    one step."""

    output: Tensor
    target: Tensor
    x: Tensor
    clean: Tensor
    level: Tensor
    group: Tensor


@dataclass
class Renoised:
    """The payload of such a rollout: clean latents `final (N, ...)`, `level (N, T)`, `group (N,)` and the `seeds` of the noise
    `(N)`; the noise itself is drawn again whenever it is needed."""

    plan: Any
    forward: Forward
    asks: list[Ask]
    final: Tensor
    level: Tensor
    group: Tensor
    seeds: list[int]
    conditioning: Conditioning | None

    def noise(self, rows: Sequence[int], steps: Sequence[int], device: torch.device) -> Tensor:
        """The noise `(n, ...)` of samples `rows` at `steps`: the same at all steps where it is shared (DGPO)."""
        keys = [0] * len(steps) if self.forward.shared else steps
        seeds = [derive_seed(self.seeds[row], "renoise", key) for row, key in zip(rows, keys, strict=True)]
        return Noise(seeds, self.final.shape[1:], device).draw()

    def noised(self, rows: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x_t, u, x0 `(n, ...)` and t `(n,)` of samples `rows (n,)` at `steps (n,)`."""
        clean = self.final[rows.to(self.final.device)]
        level = self.level[rows, steps]
        eps = self.noise(rows.tolist(), steps.tolist(), clean.device)
        t = expand(level, clean)
        return (1 - t) * clean + t * eps, eps - clean, clean, level

    def chunks(self, train: Tensor, micro_batch: int) -> Iterator[Chunk]:
        """The (row, step) pairs of `train (N, T)` bool by step and then by row, at most `micro_batch` at a time; with whole
        groups the rows of one group at one step are never parted."""
        steps, rows = train.cpu().T.nonzero(as_tuple=True)
        if not self.forward.whole_groups:
            for start in range(0, len(rows), micro_batch):
                part = slice(start, start + micro_batch)
                yield Chunk(rows[part], steps[part, None])
            return
        units: dict[tuple[int, int], list[int]] = {}
        for row, step in zip(rows.tolist(), steps.tolist(), strict=True):
            units.setdefault((step, int(self.group[row])), []).append(row)
        held: list[tuple[int, int]] = []
        for (step, _), members in units.items():
            if held and len(held) + len(members) > micro_batch:
                yield _chunk(held)
                held = []
            held += [(row, step) for row in members]
        if held:
            yield _chunk(held)


def _chunk(pairs: list[tuple[int, int]]) -> Chunk:
    table = torch.tensor(pairs)
    return Chunk(table[:, 0], table[:, 1:])


def levels(forward: Forward, draws: Sequence[Draw], sigmas: Tensor) -> Tensor:
    """Noise levels `(N, T)` float32 of `draws` (N) as `Forward` says; `sigmas (S + 1,)` is the schedule of the rollout.

    Each is a function of the draw's seed, or of its group's where they are shared.
    """
    seeds = [seed_of(forward, draw) for draw in draws]
    if forward.levels == "schedule":
        orders = [torch.randperm(len(sigmas) - 1, generator=_generator(seed)) for seed in seeds]
        return torch.stack([sigmas[order[: forward.times]] for order in orders]).float()
    inside = torch.stack([torch.rand(forward.times, generator=_generator(seed)) for seed in seeds])
    u = (torch.arange(forward.times) + inside) / forward.times
    if forward.levels == "uniform":
        return forward.t_min + (forward.t_max - forward.t_min) * shift_sigmas(u, forward.shift)
    t = torch.sigmoid(torch.special.ndtri(u.clamp(1e-4, 1 - 1e-4)))
    return shift_sigmas(t, forward.shift).clamp(forward.t_min, forward.t_max)


def seed_of(forward: Forward, draw: Draw) -> int:
    return draw.group_seed if forward.shared else draw.seed


def _generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(derive_seed(seed, "levels"))
