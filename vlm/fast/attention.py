"""Attention over a prefix that several rows share and a suffix that each row has alone, without a copy of the prefix.

Attention over the union of two sets of keys is the mean of the attentions over each, weighted by the exponentials of their
log-sum-exps. Both kernels here therefore give (output, log-sum-exp); and given the *merged* output and log-sum-exp, the
ordinary backward pass of each part gives exactly its share of the gradient, because p = exp(score - log-sum-exp) is then the
probability under the union, and rowsum(d_out * out) the same for both parts.

Shapes: B groups, G rows per group, N = B G, S suffix positions, P prefix positions, H query heads, K key heads,
r = H / K, d width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmrl.vlm.fast.kernels import choose, merge


def attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool = False, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(scale q k' + bias) v of shape (B, H, Q, d) and the log-sum-exp of the scores (B, H, Q) at least float32.

    `q (B, H, Q, d)`, `k`, `v` (B, H, L, d), `bias (B, 1, 1, L)` with 0 or -inf; `causal` takes Q = L and no bias.
    """
    return choose(q, bias).forward(q, k, v, scale, causal, bias)


def attend_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, *, causal: bool = False,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of `q`, `k` and `v`, where `out` and `lse` may be those of a union of keys of which `k` is a part."""
    return choose(q, bias).backward(d_out, q, k, v, out, lse, scale, causal, bias)


class SharedAttention(torch.autograd.Function):
    """Rows `q (B, G, S, H, d)` over a prefix per group `kp`, `vp` (B, P, K, d) and, causally, over their own `k`, `v`
    (B, G, S, K, d), with `bias (B, 1, 1, P)` on the prefix; gives (B, G, S, H, d). Nothing of size S x P is kept, and the
    prefix is never repeated per row."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, kp: Tensor, vp: Tensor, bias: Tensor | None, scale: float
    ) -> Tensor:
        heads = _Heads(q, k)
        own = heads.rows(q)
        out, lse = attend(own, heads.repeated(k), heads.repeated(v), scale, causal=True)
        part, part_lse = attend(heads.folded(own), kp.transpose(1, 2), vp.transpose(1, 2), scale, bias=bias)
        out, lse = merge(out, lse, heads.unfolded(part), heads.unfolded(part_lse))
        ctx.save_for_backward(q, k, v, kp, vp, bias, out, lse)
        ctx.scale = scale
        return heads.back(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, v, kp, vp, bias, out, lse = ctx.saved_tensors
        heads = _Heads(q, k)
        own, d_out = heads.rows(q), heads.rows(grads[0])
        d_own, d_k, d_v = attend_backward(
            d_out, own, heads.repeated(k), heads.repeated(v), out, lse, ctx.scale, causal=True
        )
        folded = [heads.folded(x) for x in (d_out, own, out, lse)]
        d_part, d_kp, d_vp = attend_backward(
            folded[0], folded[1], kp.transpose(1, 2), vp.transpose(1, 2), folded[2], folded[3], ctx.scale, bias=bias
        )
        d_q = heads.back(d_own + heads.unfolded(d_part))
        return d_q, heads.summed(d_k), heads.summed(d_v), d_kp.transpose(1, 2), d_vp.transpose(1, 2), None, None


class _Heads:
    """The two orders in which the heads of a group's rows go to a kernel."""

    def __init__(self, q: Tensor, k: Tensor) -> None:
        self.groups, self.count, self.steps, self.heads, self.width = q.shape
        self.kv = k.shape[3]
        self.share = self.heads // self.kv
        self.n = self.groups * self.count

    def rows(self, x: Tensor) -> Tensor:
        """(B, G, S, H, d) -> (N, H, S, d)."""
        return x.reshape(self.n, self.steps, self.heads, self.width).transpose(1, 2)

    def back(self, x: Tensor) -> Tensor:
        """The inverse of `rows`."""
        return x.transpose(1, 2).reshape(self.groups, self.count, self.steps, self.heads, self.width)

    def repeated(self, x: Tensor) -> Tensor:
        """Keys (B, G, S, K, d) -> (N, H, S, d), each serving r query heads."""
        x = x.reshape(self.n, self.steps, self.kv, self.width).transpose(1, 2)
        return x.repeat_interleave(self.share, 1) if self.share > 1 else x

    def summed(self, x: Tensor) -> Tensor:
        """The adjoint of `repeated`."""
        x = x.reshape(self.n, self.kv, self.share, self.steps, self.width).sum(2)
        return x.transpose(1, 2).reshape(self.groups, self.count, self.steps, self.kv, self.width)

    def folded(self, x: Tensor) -> Tensor:
        """(N, H, S, *) -> (B, K, G r S, *): all queries of a group that meet the same key head."""
        x = x.reshape(self.groups, self.count, self.kv, self.share, self.steps, *x.shape[3:])
        return x.transpose(1, 2).reshape(self.groups, self.kv, -1, *x.shape[5:])

    def unfolded(self, x: Tensor) -> Tensor:
        """The inverse of `folded`."""
        x = x.reshape(self.groups, self.kv, self.count, self.share, self.steps, *x.shape[3:])
        return x.transpose(1, 2).reshape(self.n, self.heads, self.steps, *x.shape[5:])
