"""Torch's fused attention kernels on a CUDA device, against plain products and against the CPU."""

from __future__ import annotations

import warnings

import pytest
import torch

from mmrl.vlm.fast import attention
from mmrl.vlm.fast.attention import SharedAttention
from mmrl.vlm.fast.kernels import KERNELS, choose, disagreement, kernel_for
from mmrl.vlm.fast.score import score
from tests.unit.fast_models import CLASSES, mixed_groups, tiny

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("width", [32, 64, 80, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_fused_kernels_give_what_plain_products_give(dtype: torch.dtype, width: int, biased: bool) -> None:
    name = kernel_for("cuda", dtype, width, biased)
    assert name != "plain"
    assert disagreement(KERNELS[name], "cuda", dtype, width, biased) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bias = torch.zeros(1, 1, 1, 3, dtype=dtype, device="cuda") if biased else None
        assert choose(torch.zeros(1, 1, 2, width, dtype=dtype, device="cuda"), bias) == KERNELS[name]


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.bfloat16, 5e-2)])
def test_shared_attention_is_that_of_the_cpu(dtype: torch.dtype, tolerance: float, biased: bool) -> None:
    """Groups, repeated heads, odd lengths; values and gradients."""
    g = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 50, 8, 64), (2, 3, 50, 2, 64), (2, 3, 50, 2, 64), (2, 77, 2, 64), (2, 77, 2, 64))
    inputs = [torch.randn(shape, generator=g).to(dtype) for shape in shapes]
    d_out = torch.randn(shapes[0], generator=g).to(dtype)
    bias = torch.zeros(2, 1, 1, 77, dtype=dtype).masked_fill(torch.arange(77) >= 40, float("-inf")) if biased else None
    found = {}
    for device in ("cpu", "cuda"):
        # on the CPU from the same numbers in float32
        to = torch.float32 if device == "cpu" else dtype
        leaves = [x.to(device, to).requires_grad_() for x in inputs]
        out = SharedAttention.apply(*leaves, None if bias is None else bias.to(device, to), 64**-0.5)
        found[device] = [out, *torch.autograd.grad(out, leaves, d_out.to(device, to))]
    for here, there in zip(found["cpu"], found["cuda"], strict=True):
        error = (there.detach().cpu().float() - here.detach()).abs().max() / here.detach().abs().max()
        assert float(error) < tolerance


@pytest.mark.parametrize("kind", CLASSES)
def test_scores_are_those_of_plain_products(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(kind).to("cuda")
    fused = [x.detach() for x in score(model, mixed_groups(kind)).log_prob]
    monkeypatch.setattr(attention, "choose", lambda q, bias: KERNELS["plain"])
    for one, other in zip(fused, score(model, mixed_groups(kind)).log_prob, strict=True):
        torch.testing.assert_close(one, other.detach(), atol=1e-2, rtol=1e-2)


def test_no_scores_are_held() -> None:
    """Memory grows with S + P, not with S x P."""
    q = (
        torch.randn(1, 4, 4, 2048, 64, dtype=torch.bfloat16, device="cuda")
        .transpose(2, 3)
        .contiguous()
        .requires_grad_()
    )
    k, v = (torch.randn_like(q, requires_grad=True) for _ in range(2))
    kp, vp = (torch.randn(1, 4096, 4, 64, dtype=torch.bfloat16, device="cuda", requires_grad=True) for _ in range(2))
    SharedAttention.apply(
        q[:, :, :8], k[:, :, :8], v[:, :, :8], kp, vp, None, 0.125
    ).sum().backward()  # checks are made
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    SharedAttention.apply(q, k, v, kp, vp, None, 0.125).sum().backward()
    scores = 4 * 4 * 2048 * 4096 * 4
    assert torch.cuda.max_memory_allocated() - before < scores / 2
