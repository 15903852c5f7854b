"""Two small operations of every decoder layer, each as one step of the autograd graph: on small models the graph's bookkeeping
costs more than the arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rms_norm(norm: Any, x: Tensor) -> Tensor:
    """`norm(x)` for a root-mean-square norm of the Qwen line: float32 inside, weight applied in the dtype of `x (..., h)`."""
    if not torch.is_grad_enabled() and x.dtype == torch.float32:
        return torch.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)
    return _RmsNorm.apply(x, norm.weight, norm.variance_epsilon)


def signed(sin: Tensor) -> Tensor:
    """`sin (..., d)` with its first half negated, as `rotate` takes it."""
    first, second = sin.chunk(2, -1)
    return torch.cat((-first, second), -1)


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotary positions: element i of a head is turned with element i + d/2. `x (T, H, d)`, `cos` and `signed_sin` (T, 1, d)."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _rotated(x, cos, signed_sin)
    return _Rotate.apply(x, cos, signed_sin)


def _rotated(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.addcmul(x * cos, torch.cat((second, first), -1), signed_sin)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, signed_sin)
        return _rotated(x, cos, signed_sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        cos, signed_sin = ctx.saved_tensors
        # the inverse of a rotation is the rotation by the negative angle
        return _rotated(grads[0], cos, -signed_sin), None, None


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        rstd = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, rstd)
        return (wide * rstd).to(x.dtype) * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, rstd = ctx.saved_tensors
        normed = x * rstd
        d = grads[0] * weight
        d_weight = (grads[0] * normed).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = torch.addcmul(d, normed, (d * normed).mean(-1, keepdim=True), value=-1).mul_(rstd).to(x.dtype)
        return d_x, d_weight, None
