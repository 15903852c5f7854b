"""Which attention kernel is taken, the check before a fused one is trusted, and how CUDA's operators are called.

The operators themselves run in tests/gpu alone; here their arguments go through their schemas on the meta device, and a
stand-in on the CPU asserts what they expect.
"""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl.vlm.fast import kernels
from mmrl.vlm.fast.kernels import KERNELS, Kernel, aligned, choose, disagreement, kernel_for, padded

PLAIN = KERNELS["plain"]


@pytest.mark.parametrize(
    ("device", "dtype", "width", "biased", "name"),
    [
        ("cpu", torch.float64, 7, True, "cpu"),
        ("cuda", torch.bfloat16, 128, False, "flash"),
        ("cuda", torch.float16, 256, False, "flash"),
        ("cuda", torch.bfloat16, 264, False, "efficient"),
        ("cuda", torch.bfloat16, 128, True, "efficient"),
        ("cuda", torch.float32, 20, False, "efficient"),
        ("cuda", torch.bfloat16, 20, False, "plain"),
        ("cuda", torch.float32, 18, True, "plain"),
        ("cuda", torch.float64, 64, False, "plain"),
        ("mps", torch.float32, 64, False, "plain"),
    ],
)
def test_which_kernel(device: str, dtype: torch.dtype, width: int, biased: bool, name: str) -> None:
    assert kernel_for(device, dtype, width, biased) == name


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_right_kernels_pass_the_check(dtype: torch.dtype, biased: bool) -> None:
    for name in ("cpu", "plain"):
        assert disagreement(KERNELS[name], "cpu", dtype, 16, biased) is None


def wrong(**change: Any) -> Kernel:
    """Plain products with another convention."""

    def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, bias: Tensor | None) -> Any:
        out, lse = PLAIN.forward(
            q, k, v, scale, causal and not change.get("blind"), None if change.get("blind") else bias
        )
        return out, lse * change.get("base", 1.0)

    def backward(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest: Any) -> Any:
        if change.get("own"):  # its own output in place of the union's
            out, lse = PLAIN.forward(q, k, v, *rest)
        d_q, d_k, d_v = PLAIN.backward(d_out, q, k, v, out, lse, *rest)
        return d_q * change.get("gain", 1.0), d_k, d_v

    return Kernel(forward, backward)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("change", [{"base": 1.4427}, {"own": True}, {"blind": True}, {"gain": 1.2}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_convention_is_found_out(dtype: torch.dtype, change: dict[str, Any], biased: bool) -> None:
    assert disagreement(wrong(), "cpu", dtype, 16, biased) is None
    reason = disagreement(wrong(**change), "cpu", dtype, 16, biased)
    assert reason is not None and "it differs from them by" in reason


def test_a_kernel_that_fails_gives_way_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("no kernel for this device\nand more")

    monkeypatch.setattr(kernels, "kernel_for", lambda *_: "flash")
    monkeypatch.setitem(kernels.KERNELS, "flash", Kernel(fails, fails))
    kernels._trusted.cache_clear()
    q = torch.zeros(1, 1, 2, 8)
    with pytest.warns(
        UserWarning,
        match=r"^torch's flash attention is not used for torch.float32 heads of 8 on cpu: no kernel for this device; [^\n]*$",
    ):
        assert choose(q, None) == PLAIN
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose(q, None) == PLAIN
    monkeypatch.setitem(kernels.KERNELS, "flash", KERNELS["cpu"])
    kernels._trusted.cache_clear()
    assert choose(q, None) == KERNELS["cpu"]
    kernels._trusted.cache_clear()


@pytest.mark.parametrize(("name", "biased"), [("flash", False), ("efficient", False), ("efficient", True)])
def test_the_operators_take_these_arguments(name: str, biased: bool) -> None:
    dtype = torch.bfloat16 if name == "flash" else torch.float32
    with torch.device("meta"):
        q, k, v = (torch.empty(2, 3, n, 16, dtype=dtype) for n in (5, 7, 7))
        bias = torch.empty(2, 1, 1, 7, dtype=dtype) if biased else None
        out, lse = KERNELS[name].forward(q, k, v, 0.5, False, bias)
        assert out.shape == q.shape and out.dtype == dtype and lse.shape == (2, 3, 5) and lse.dtype == torch.float32
        grads = KERNELS[name].backward(torch.empty_like(q), q, k, v, out, lse, 0.5, False, bias)
        assert [x.shape for x in grads] == [q.shape, k.shape, v.shape]


def test_log_sum_exps_are_padded_with_infinity() -> None:
    lse = torch.randn(2, 3, 40)[..., ::2]
    found = padded(lse)
    assert found.shape == (2, 3, 32) and found.is_contiguous()
    assert torch.equal(found[..., :20], lse) and torch.isinf(found[..., 20:]).all()
    assert padded(torch.zeros(1, 1, 64)).shape == (1, 1, 64)


def test_a_bias_is_aligned_in_memory_and_not_copied_per_query() -> None:
    bias = torch.randn(4, 1, 1, 21)
    found = aligned(bias, torch.zeros(4, 3, 5, 8))
    assert found is not None and found.shape == (4, 3, 5, 21) and found.stride() == (32, 0, 0, 1)
    assert torch.equal(found, bias.expand(4, 3, 5, 21)) and aligned(None, bias) is None


def test_the_operators_get_what_they_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins that compute on the CPU with the conventions of the CUDA operators."""

    def flash(q: Tensor, k: Tensor, v: Tensor, dropout: float, causal: bool, debug: bool, *, scale: float) -> Any:
        out, lse = PLAIN.forward(q, k, v, scale, causal, None)
        return out, lse, None, None, q.shape[2], k.shape[2], None, None, None

    def flash_backward(
        d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cum_q: Any, cum_k: Any, max_q: int,
        max_k: int, dropout: float, causal: bool, seed: Tensor, offset: Tensor, *, scale: float,
    ) -> Any:  # fmt: skip
        assert (max_q, max_k, cum_q, cum_k) == (q.shape[2], k.shape[2], None, None) and dropout == 0
        assert d_out.is_contiguous() and out.is_contiguous() and seed.dtype == offset.dtype == torch.uint64
        return PLAIN.backward(d_out, q, k, v, out, lse, scale, causal, None)

    def efficient(
        q: Tensor, k: Tensor, v: Tensor, bias: Any, lse: bool, dropout: float, causal: bool, *, scale: float
    ) -> Any:  # fmt: skip
        assert lse and (bias is None or all(n % 16 == 0 for n in bias.stride()[:3]))
        out, found = PLAIN.forward(q, k, v, scale, causal, bias)
        return out, torch.nn.functional.pad(found, (0, -found.shape[-1] % 32), value=float("inf")), None, None

    def efficient_backward(
        d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Any, out: Tensor, lse: Tensor, seed: Tensor, offset: Tensor,
        dropout: float, mask: list[bool], causal: bool, *, scale: float,
    ) -> Any:  # fmt: skip
        assert lse.shape[-1] % 32 == 0 and mask == [True, True, True, False] and dropout == 0
        assert torch.isinf(lse[..., q.shape[2] :]).all()
        return *PLAIN.backward(d_out, q, k, v, out, lse[..., : q.shape[2]], scale, causal, bias), None

    stand_ins = SimpleNamespace(
        _scaled_dot_product_flash_attention=flash, _scaled_dot_product_flash_attention_backward=flash_backward,
        _scaled_dot_product_efficient_attention=efficient,
        _scaled_dot_product_efficient_attention_backward=efficient_backward,
    )  # fmt: skip
    monkeypatch.setattr(kernels, "_aten", stand_ins)
    for name, biased in (("flash", False), ("efficient", False), ("efficient", True)):
        assert disagreement(KERNELS[name], "cpu", torch.float32, 16, biased) is None
