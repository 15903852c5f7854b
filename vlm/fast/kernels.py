"""Attention kernels that give (output, log-sum-exp), and whose backward pass takes those of a union of keys.

Each has the two functions of `Kernel`. On CUDA torch's fused kernels are called through operators that are not part of its
documented interface, so each of them is compared with plain products before its first use (`agrees`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

_aten = torch.ops.aten

HALF = (torch.float16, torch.bfloat16)
TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float32: 5e-3}
"""Of a fused kernel against float64, relative to the largest value. A wrong convention is wrong by far more."""


class Kernel(NamedTuple):
    """`forward(q, k, v, scale, causal, bias)` gives the output and the log-sum-exp (B, H, Q) at least in float32;
    `backward(d_out, q, k, v, out, lse, scale, causal, bias)` the gradients of q, k and v. Shapes as in `attend`."""

    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]


def wide(x: Tensor) -> Tensor:
    """`x` at least in float32."""
    return x if x.dtype == torch.float64 else x.float()


# ---- plain products, for every device and dtype; they hold the scores (Q, L)


def _plain(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, bias: Tensor | None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    scores = _scores(q, k, scale, causal, bias)
    lse = scores.logsumexp(-1)
    return scores.sub_(lse[..., None]).exp_().to(v.dtype) @ v, lse


def _plain_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, causal: bool, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    p = _scores(q, k, scale, causal, bias).sub_(lse[..., None]).exp_()
    d_v = p.to(v.dtype).transpose(-1, -2) @ d_out
    d_scores = wide(d_out @ v.transpose(-1, -2)) - (wide(d_out) * wide(out)).sum(-1, keepdim=True)
    d_scores = d_scores.mul_(p).mul_(scale).to(q.dtype)
    return d_scores @ k, d_scores.transpose(-1, -2) @ q, d_v


def _scores(q: Tensor, k: Tensor, scale: float, causal: bool, bias: Tensor | None) -> Tensor:
    scores = wide(q @ k.transpose(-1, -2)) * scale
    if bias is not None:
        scores = scores + bias
    if causal:
        scores.masked_fill_(torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu_(1), float("-inf"))
    return scores


# ---- the CPU's fused kernel


def _cpu(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=bias, scale=scale)
    return out, lse


def _cpu_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, causal: bool, bias: Tensor | None
) -> Any:  # fmt: skip
    return _aten._scaled_dot_product_flash_attention_for_cpu_backward(
        d_out, q, k, v, out, lse, 0.0, causal, attn_mask=bias, scale=scale
    )


# ---- CUDA: flash attention, which takes no bias


def _flash(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    assert bias is None
    found = _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
    return found[0], found[1]


def _flash_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, causal: bool, bias: Tensor | None
) -> Any:  # fmt: skip
    assert bias is None
    # without dropout the state of the random numbers is not read; without lengths all rows are whole
    state, unused = (
        torch.zeros(shape, dtype=torch.int64, device=q.device).view(torch.uint64) for shape in ((2,), (1,))
    )
    return _aten._scaled_dot_product_flash_attention_backward(
        d_out.contiguous(), q, k, v, out.contiguous(), lse.contiguous(), None, None, q.shape[2], k.shape[2], 0.0, causal,
        state, unused[0], scale=scale,
    )  # fmt: skip


# ---- CUDA: memory-efficient attention, which takes a bias and float32

ALIGN_LSE = 32
"""Its log-sum-exps are as long as the next multiple."""
ALIGN_BIAS = 16


def _efficient(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, bias: Tensor | None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    found = _aten._scaled_dot_product_efficient_attention(q, k, v, aligned(bias, q), True, 0.0, causal, scale=scale)
    return found[0], found[1][..., : q.shape[2]]


def _efficient_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, causal: bool, bias: Tensor | None
) -> Any:  # fmt: skip
    seed, offset = (torch.zeros((), dtype=torch.int64, device=q.device) for _ in range(2))
    found = _aten._scaled_dot_product_efficient_attention_backward(
        d_out.contiguous(), q, k, v, aligned(bias, q), out, padded(lse), seed, offset, 0.0, [True, True, True, False], causal,
        scale=scale,
    )  # fmt: skip
    return found[:3]


def padded(lse: Tensor) -> Tensor:
    """`lse (B, H, Q)` up to a multiple of `ALIGN_LSE` with infinity, where every probability is 0."""
    return torch.nn.functional.pad(lse, (0, -lse.shape[-1] % ALIGN_LSE), value=float("inf")).contiguous()


def aligned(bias: Tensor | None, q: Tensor) -> Tensor | None:
    """`bias (B, 1, 1, L)` as a view (B, H, Q, L) of rows whose length in memory is a multiple of `ALIGN_BIAS`."""
    if bias is None:
        return None
    length = bias.shape[-1]
    rows = torch.nn.functional.pad(bias, (0, -length % ALIGN_BIAS))[..., :length]
    return rows.expand(*q.shape[:3], length)


KERNELS = {
    "plain": Kernel(_plain, _plain_backward),
    "cpu": Kernel(_cpu, _cpu_backward),
    "flash": Kernel(_flash, _flash_backward),
    "efficient": Kernel(_efficient, _efficient_backward),
}


# ---- which one


def kernel_for(device: str, dtype: torch.dtype, width: int, biased: bool) -> str:
    """The kernel for tensors of this kind of device, dtype and head width, before it is tried."""
    if device == "cpu":
        return "cpu"
    if device != "cuda" or torch.version.hip is not None:
        return "plain"
    if dtype in HALF and width % 8 == 0:
        return "efficient" if biased else ("flash" if width <= 256 else "efficient")
    return "efficient" if dtype == torch.float32 and width % 4 == 0 else "plain"


def choose(q: Tensor, bias: Tensor | None) -> Kernel:
    """The kernel for `q (B, H, Q, d)`: a fused one where it gives what plain products give."""
    name = kernel_for(q.device.type, q.dtype, q.shape[-1], bias is not None)
    if name in ("flash", "efficient") and not _trusted(name, q.device, q.dtype, q.shape[-1], bias is not None):
        name = "plain"
    return KERNELS[name]


@cache
def _trusted(name: str, device: torch.device, dtype: torch.dtype, width: int, biased: bool) -> bool:
    reason = disagreement(KERNELS[name], device, dtype, width, biased)
    if reason is not None:
        warnings.warn(
            f"torch's {name} attention is not used for {dtype} heads of {width} on {device}: {reason}; plain products take more "
            "memory",
            stacklevel=2,
        )
    return reason is None


@torch.no_grad()
def disagreement(
    kernel: Kernel, device: torch.device | str, dtype: torch.dtype, width: int, biased: bool
) -> str | None:
    """What is wrong with a kernel against plain products in float64, in the two calls of a shared prefix and a causal suffix
    whose union goes into both backward passes; None when nothing is."""
    g = torch.Generator().manual_seed(0)
    batch, heads, steps, length = 2, 3, 70, 45

    def random(length: int) -> Tensor:
        return torch.randn(batch, length, heads, width, generator=g).to(device, dtype).transpose(1, 2)

    q, d_out, k, v, kp, vp = (random(n) for n in (steps, steps, steps, steps, length, length))
    bias = None
    if biased:
        bias = torch.zeros(batch, 1, 1, length, dtype=dtype, device=device)
        bias[1, ..., length // 2 :] = float("-inf")
    # with a bias, the kernel is only ever asked for a prefix
    calls = [(kp, vp, False, bias)] if biased else [(kp, vp, False, None), (k, v, True, None)]

    def run(kernel: Kernel, to: torch.dtype) -> list[Tensor]:
        parts = [(a.to(to), b.to(to), causal, None if mask is None else mask.to(to)) for a, b, causal, mask in calls]
        each = [kernel.forward(q.to(to), a, b, width**-0.5, causal, mask) for a, b, causal, mask in parts]
        other, other_lse = KERNELS["plain"].forward(q.to(to), k.to(to), v.to(to), width**-0.5, True, None)
        out, lse = merge(*each[0], *(each[1] if len(each) > 1 else (other, other_lse)))
        grads = [
            kernel.backward(d_out.to(to), q.to(to), a, b, out, lse, width**-0.5, causal, mask)
            for a, b, causal, mask in parts
        ]
        return [out, lse, *(x for pair in each for x in pair), *(x for some in grads for x in some)]

    with torch.autocast(torch.device(device).type, enabled=False):
        expected = run(KERNELS["plain"], torch.float64)
        try:
            found = run(kernel, dtype)
        except (RuntimeError, NotImplementedError) as error:
            return (str(error).strip() or type(error).__name__).splitlines()[0]
    for got, want in zip(found, expected, strict=True):
        if got.shape != want.shape:
            return f"it gives {tuple(got.shape)} where {tuple(want.shape)} is due"
        off = float((got.double() - want).abs().max() / want.abs().max())
        if not off <= TOLERANCE.get(dtype, 1e-6):
            return f"it differs from them by {off:.1g} of the largest value"
    return None


def merge(out: Tensor, lse: Tensor, out_prefix: Tensor, lse_prefix: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two sets of keys from the attention over each: outputs (..., d), log-sum-exps (...)."""
    share = torch.sigmoid(lse_prefix - lse).unsqueeze(-1)
    if out.dtype == share.dtype:
        return torch.lerp(out, out_prefix, share), torch.logaddexp(lse, lse_prefix)
    return torch.lerp(out.to(share.dtype), out_prefix.to(share.dtype), share).to(out.dtype), torch.logaddexp(
        lse, lse_prefix
    )
