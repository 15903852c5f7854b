"""Sampling answers: every prompt and its pictures are computed once, and its keys and values are shared by its answers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmrl.vlm.encoded import EncodedPrompt
from mmrl.vlm.fast.attention import attend
from mmrl.vlm.fast.decoder import Cache, embed, positions, rope, run, run_layer
from mmrl.vlm.fast.kernels import merge
from mmrl.vlm.fast.ops import rms_norm
from mmrl.vlm.fast.packing import Layout, Spread
from mmrl.vlm.fast.parts import Parts, parts
from mmrl.vlm.fast.sampling import choose, uniforms
from mmrl.vlm.fast.vision import Vision, encode_vision

ROPE_STEPS = 32
"""Steps whose rotary tables are computed together."""


@dataclass(frozen=True)
class Generated:
    """N sampled answers, prompt by prompt, S = max_new_tokens: `tokens (N, S)` int64 with the pad id after the end,
    `log_prob (N, S)` float32 and `mask (N, S)` bool of the tokens that were drawn, the end token among them, and
    `finished (N,)` bool: those that drew an end token."""

    tokens: Tensor
    log_prob: Tensor
    mask: Tensor
    finished: Tensor


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[EncodedPrompt],
    copies: Sequence[int],
    seeds: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float,
    eos_ids: Collection[int],
    pad_id: int,
    visions: Sequence[Vision] | None = None,
) -> Generated:
    """Sample `copies[i]` answers to `prompts[i]`, each until one of `eos_ids` or for `max_new_tokens`.

    `seeds` has one number per answer, prompt by prompt; an answer's tokens depend on its prompt and its seed alone
    (`mmrl.vlm.fast.sampling`). `temperature` 0 takes the most likely token. `visions` are those of the prompts when they
    were encoded before.
    """
    assert len(prompts) == len(copies) and len(seeds) == sum(copies)
    part = parts(model)
    visions = encode_vision(model, prompts) if visions is None else visions
    cache: Cache = []
    found = [positions(part, prompt) for prompt in prompts]
    layout = Layout([len(p) for p in prompts], [[]] * len(prompts), part.device)
    x, vision_at = embed(part, torch.cat([p.input_ids for p in prompts]).to(part.device), prompts, visions)
    where = torch.cat([where for where, _ in found], 1).to(part.device)
    hidden = run(part, x, where, layout, visions, vision_at, cache)
    group = torch.repeat_interleave(torch.arange(len(prompts)), torch.tensor(copies))
    start = torch.tensor([start for _, start in found])[group]
    logits = (hidden @ part.weight.t())[group.to(part.device)]

    rows, steps = len(seeds), max_new_tokens
    tokens = torch.full((steps, rows), pad_id, dtype=torch.int64, device=part.device)
    log_prob = torch.zeros(steps, rows, device=part.device)
    mask = torch.zeros(steps, rows, dtype=torch.bool, device=part.device)
    uniform = uniforms(seeds, steps, part.device).t().contiguous()
    ends = torch.tensor(sorted(eos_ids), device=part.device)
    active = _Active(part, cache, layout.bias_as(x), group, start.to(part.device), steps)
    alive = torch.ones(rows, dtype=torch.bool, device=part.device)
    for t in range(steps):
        token, chosen = choose(logits, uniform[t] if active.all else uniform[t][active.rows], temperature)
        tokens[t, active.rows] = token.masked_fill(~alive, pad_id)
        log_prob[t, active.rows] = chosen * alive
        mask[t, active.rows] = alive
        alive = alive & ~(token[:, None] == ends).any(-1)
        living = int(alive.sum())
        if not living or t == steps - 1:
            break
        if living <= 0.875 * len(alive):
            keep = alive.nonzero().squeeze(-1)
            active.keep(keep)
            token, alive = token[keep], alive[keep]
        logits = active.step(token) @ part.weight.t()
    finished = (mask & (tokens[..., None] == ends).any(-1)).any(0)
    return Generated(tokens.t().contiguous(), log_prob.t().contiguous(), mask.t().contiguous(), finished)


class _Active:
    """The rows that still write: their place in their group, their own keys and values, their positions."""

    def __init__(
        self, part: Parts, cache: Cache, bias: Tensor | None, group: Tensor, start: Tensor, steps: int
    ) -> None:  # fmt: skip
        self.part, self.prefix, self.bias, self.limit = part, cache, bias, steps
        self.rows: Tensor | slice = slice(None)
        self.start, self.t = start, 0
        # of the present block of steps, (ROPE_STEPS, n, 1, d)
        self.cos = self.sin = torch.empty(0)
        self.scale = part.head_dim**-0.5
        self.group = group
        room = min(steps, ROPE_STEPS)
        key = cache[0][0]
        self.own = [[key.new_empty(len(group), key.shape[1], room, key.shape[3]) for _ in range(2)] for _ in cache]
        self._arrange()

    @property
    def all(self) -> bool:
        return isinstance(self.rows, slice)

    def _arrange(self) -> None:
        """Put rows into the slots (B, G) of their groups, and forget groups without rows."""
        left, self.group = self.group.unique(return_inverse=True)
        if len(left) < len(self.prefix[0][0]):
            left = left.to(self.part.device)
            self.prefix = [(k.index_select(0, left), v.index_select(0, left)) for k, v in self.prefix]
            self.bias = None if self.bias is None else self.bias.index_select(0, left)
        counts = self.group.bincount().tolist()
        slots = (len(counts), max(counts))
        self.slots = Spread(counts, slots, range(len(counts)), self.part.device)

    def keep(self, rows: Tensor) -> None:
        """Go on with `rows` alone, indices into the present ones."""
        self.rows = rows if isinstance(self.rows, slice) else self.rows[rows]
        self.start, self.group = self.start[rows], self.group[rows.cpu()]
        self.own = [[x.index_select(0, rows) for x in pair] for pair in self.own]
        if self.t % ROPE_STEPS:
            self.cos, self.sin = self.cos.index_select(1, rows), self.sin.index_select(1, rows)
        self._arrange()

    def _grow(self) -> None:
        room = min(self.limit, max(2 * self.t, ROPE_STEPS))
        for pair in self.own:
            for i, x in enumerate(pair):
                pair[i] = x.new_empty(*x.shape[:2], room, x.shape[3])
                pair[i][:, :, : self.t] = x[:, :, : self.t]

    def step(self, token: Tensor) -> Tensor:
        """Last hidden states (n, h) after each row's next `token (n,)`."""
        part, t = self.part, self.t
        if self.own[0][0].shape[2] <= t:
            self._grow()
        x = part.decoder.embed_tokens(token)
        if t % ROPE_STEPS == 0:
            where = self.start + torch.arange(t, t + ROPE_STEPS, device=x.device)[:, None]
            cos, sin = rope(part, x, where.reshape(-1).expand(3, -1))
            shape = (ROPE_STEPS, len(token), *cos.shape[1:])
            self.cos, self.sin = cos.view(shape), sin.view(shape)
        cos, sin = self.cos[t % ROPE_STEPS], self.sin[t % ROPE_STEPS]
        for index, layer in enumerate(part.decoder.layers):
            x = run_layer(layer, partial(self._attend, index), x, cos, sin)
        self.t += 1
        return rms_norm(part.decoder.norm, x)

    def _attend(self, index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n, heads, width = q.shape
        own_k, own_v = self.own[index]
        own_k[:, :, self.t], own_v[:, :, self.t] = k, v
        # query heads of one key head are queries of one attention
        q = q.view(n, own_k.shape[1], -1, width)
        out, lse = attend(q, own_k[:, :, : self.t + 1], own_v[:, :, : self.t + 1], self.scale)
        groups, count = self.slots.shape
        folded = self.slots(q).transpose(1, 2).reshape(groups, q.shape[1], -1, width)
        part, part_lse = attend(folded, *self.prefix[index], self.scale, bias=self.bias)
        part = self.slots.back(part.view(groups, q.shape[1], count, -1, width).transpose(1, 2))
        part_lse = self.slots.back(part_lse.view(groups, q.shape[1], count, -1).transpose(1, 2))
        return merge(out, lse, part, part_lse)[0].view(n, heads, width)
