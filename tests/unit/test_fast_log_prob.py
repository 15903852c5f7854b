"""Chunked log-probs, entropies and divergences against plain float64 formulas and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mmrl.vlm.fast import log_prob as module
from mmrl.vlm.fast.log_prob import linear_kl, linear_log_prob

n, h, V = 11, 5, 13


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(n, h, generator=g, dtype=dtype), torch.randn(V, h, generator=g, dtype=dtype)
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(0, V, (n,), generator=g)


def naive(hidden: Tensor, weight: Tensor, temperature: float) -> list[list[float]]:
    """Log-softmax as loops."""
    rows = []
    for x in hidden.tolist():
        z = [sum(a * b for a, b in zip(x, w, strict=True)) / temperature for w in weight.tolist()]
        total = math.log(sum(math.exp(value) for value in z))
        rows.append([value - total for value in z])
    return rows


@pytest.mark.parametrize("chunk", [1, 4, 512])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_values(chunk: int, temperature: float) -> None:
    hidden, weight, targets = inputs()
    log_prob, entropy = linear_log_prob(hidden, weight, targets, temperature, chunk)
    for i, row in enumerate(naive(hidden, weight, temperature)):
        assert abs(log_prob[i].item() - row[targets[i]]) < 1e-12
        assert abs(entropy[i].item() + sum(math.exp(x) * x for x in row)) < 1e-12


@pytest.mark.parametrize("chunk", [4, 512])
def test_gradients_by_finite_differences(chunk: int) -> None:
    hidden, weight, targets = inputs()
    assert torch.autograd.gradcheck(lambda a, b: linear_log_prob(a, b, targets, 0.7, chunk), (hidden, weight))
    for part in (0, 1):
        assert torch.autograd.gradcheck(
            lambda a, b, i=part: linear_log_prob(a, b, targets, 0.7, chunk)[i], (hidden, weight)
        )


def test_kl_values_and_gradients() -> None:
    hidden, weight, _ = inputs()
    other = [
        torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(i))
        for i, x in enumerate((hidden, weight))
    ]
    kl = linear_kl(hidden, weight, other[0], other[1], 0.7, 4)
    p, q = naive(hidden, weight, 0.7), naive(other[0], other[1], 0.7)
    for i in range(n):
        expected = sum(math.exp(a) * (a - b) for a, b in zip(p[i], q[i], strict=True))
        assert abs(kl[i].item() - expected) < 1e-12
    function: Callable[..., Tensor] = lambda *x: linear_kl(*x, 0.7, 4)  # noqa: E731
    assert torch.autograd.gradcheck(function, (hidden, weight, *(x.requires_grad_() for x in other)))


def test_float32_is_near_float64() -> None:
    """Large logits, a batch of many chunks, the gradient of log-prob and entropy together."""
    hidden, weight, targets = inputs()
    grads = {}
    for dtype in (torch.float64, torch.float32):
        a, b = ((8 * x.detach()).to(dtype).requires_grad_() for x in (hidden, weight))
        log_prob, entropy = linear_log_prob(a, b, targets, chunk=3)
        assert log_prob.dtype == entropy.dtype == dtype
        grads[dtype] = torch.autograd.grad((log_prob * 0.3 + entropy).sum(), (a, b))
        if dtype == torch.float64:
            exact = log_prob.detach()
    torch.testing.assert_close(log_prob.double(), exact, atol=1e-4, rtol=1e-5)
    for x, y in zip(grads[torch.float32], grads[torch.float64], strict=True):
        torch.testing.assert_close(x.double(), y, atol=1e-3, rtol=1e-4)


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    hidden, weight, targets = inputs(torch.float32)
    log_prob, _ = linear_log_prob(hidden, weight.detach(), targets)
    log_prob.sum().backward()
    assert hidden.grad is not None and weight.grad is None
    frozen = module._Accumulator(hidden, weight, (True, False))
    assert frozen.weight is None and module._Accumulator(hidden, weight, (False, True)).hidden is None
    log_prob, _ = linear_log_prob(hidden.detach(), weight, targets)
    log_prob.sum().backward()
    assert weight.grad is not None
    # bfloat16: float32 results, gradients in the dtype of the inputs
    low = [x.detach().bfloat16().requires_grad_() for x in (hidden, weight)]
    log_prob, entropy = linear_log_prob(low[0], low[1], targets, chunk=4)
    assert log_prob.dtype == entropy.dtype == torch.float32
    (log_prob + entropy).sum().backward()
    assert all(x.grad is not None and x.grad.dtype == torch.bfloat16 for x in low)


def test_no_chunk_is_larger_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    plain = module.log_softmax
    monkeypatch.setattr(module, "log_softmax", lambda x, *rest: (seen.append(len(x)), plain(x, *rest))[1])
    hidden, weight, targets = inputs()
    log_prob, _ = linear_log_prob(hidden, weight, targets, chunk=4)
    assert seen == [4, 4, 3]
    log_prob.sum().backward()
    assert seen == [4, 4, 3] * 2


def test_nothing_to_score() -> None:
    hidden, weight, targets = inputs(torch.float32)
    log_prob, entropy = linear_log_prob(hidden[:0], weight, targets[:0])
    (log_prob.sum() + entropy.sum()).backward()
    assert log_prob.shape == (0,) and weight.grad is not None and not weight.grad.any()
