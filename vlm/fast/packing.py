"""Where the tokens of a packed row stand, and how attention sees them.

A packed row is `[prompt 0, prompt 1, ..., answer 0 of prompt 0, answer 1 of prompt 0, ...]` without padding: linear layers run
over T = sum P + sum S tokens. Only attention spreads it out, to `(B, P)` prompts and `(B, G, S)` answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mmrl.vlm.fast.attention import SharedAttention


class Spread:
    """Ragged rows, packed one after another, as a rectangle padded on the right; without copies when nothing is ragged."""

    def __init__(
        self, lengths: Sequence[int], shape: tuple[int, ...], row: Sequence[int], device: torch.device
    ) -> None:
        """Row i has `lengths[i]` elements and becomes line `row[i]` of the rectangle, whose last dimension is `shape[-1]`."""
        self.shape, self.total = shape, sum(lengths)
        width = shape[-1]
        lines = 1
        for size in shape[:-1]:
            lines *= size
        self.full = lines == len(lengths) and all(n == width for n in lengths)
        if self.full:
            return
        of_row = torch.repeat_interleave(torch.tensor(row), torch.tensor(lengths))
        start = torch.tensor([0, *lengths]).cumsum(0)[:-1]
        within = torch.arange(self.total) - torch.repeat_interleave(start, torch.tensor(lengths))
        take = of_row * width + within
        pad = torch.zeros(lines * width, dtype=torch.int64)
        pad[take] = torch.arange(self.total)
        self._take, self._pad = take.to(device), pad.to(device)

    def __call__(self, x: Tensor) -> Tensor:
        """(total, ...) -> (*shape, ...); what stands in the padding is any row of `x`."""
        return (x if self.full else x.index_select(0, self._pad)).view(*self.shape, *x.shape[1:])

    def back(self, x: Tensor) -> Tensor:
        """(*shape, ...) -> (total, ...)."""
        x = x.reshape(-1, *x.shape[len(self.shape) :])
        return x if self.full else x.index_select(0, self._take)


class Layout:
    """Shape of a packed row: `prompts[b]` tokens of prompt b and, for each of its answers, `answers[b][g]` tokens (0 allowed)."""

    def __init__(self, prompts: Sequence[int], answers: Sequence[Sequence[int]], device: torch.device) -> None:
        self.prompts = list(prompts)
        self.groups, self.longest = len(prompts), max(prompts)
        self.prefix_tokens, self.suffix_tokens = sum(prompts), sum(map(sum, answers))
        # the last token of each prompt in the packed row
        self.ends = torch.tensor(self.prompts, device=device).cumsum(0) - 1
        self.prefix = Spread(prompts, (self.groups, self.longest), range(self.groups), device)
        self.bias: Tensor | None = None
        if not self.prefix.full:
            beyond = torch.arange(self.longest) >= torch.tensor(self.prompts)[:, None]
            self.bias = torch.zeros(beyond.shape).masked_fill_(beyond, float("-inf"))[:, None, None].to(device)
        if self.suffix_tokens:
            count = max(map(len, answers))
            steps = max(n for group in answers for n in group)
            rows = [b * count + g for b, group in enumerate(answers) for g in range(len(group))]
            self.suffix = Spread([n for group in answers for n in group], (self.groups, count, steps), rows, device)

    def bias_as(self, x: Tensor) -> Tensor | None:
        """0 for a prompt's tokens and -inf for its padding, (B, 1, 1, P) in the dtype of `x`; None without padding."""
        return None if self.bias is None else self.bias.to(x.dtype)

    def prefix_attention(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Causal attention of every prompt to itself. `q (B, P, H, d)`, `k`, `v` (B, P, K, d); gives the packed (sum P, H, d)."""
        share = q.shape[2] // k.shape[2]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        # the padding is on the right: no real query sees it, and a causal call without mask is the fast one
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=share > 1)
        return self.prefix.back(out.transpose(1, 2))

    def last_attention(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attention of the last token of every prompt to the prompt. `q (B, H, d)`, `k`, `v` (B, P, K, d); gives (B, H, d)."""
        groups, heads, width = q.shape
        q = q.view(groups, k.shape[2], -1, width)
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias_as(q), scale=scale)
        return out.reshape(groups, heads, width)

    def suffix_attention(self, q: Tensor, k: Tensor, v: Tensor, kp: Tensor, vp: Tensor, scale: float) -> Tensor:
        """Attention of every answer to its prompt `kp`, `vp` (B, P, K, d) and, causally, to itself: `q (sum S, H, d)`."""
        out = SharedAttention.apply(self.suffix(q), self.suffix(k), self.suffix(v), kp, vp, self.bias_as(q), scale)
        return self.suffix.back(out)
