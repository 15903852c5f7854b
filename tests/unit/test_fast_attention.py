"""Attention over a shared prefix and an own suffix against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmrl.vlm.fast import attention
from mmrl.vlm.fast.attention import SharedAttention, attend
from mmrl.vlm.fast.kernels import KERNELS, merge
from mmrl.vlm.fast.packing import Layout, Spread

G = torch.Generator().manual_seed(0)


@pytest.fixture(params=["cpu", "plain"], autouse=True)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "choose", lambda q, bias: KERNELS[request.param])


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


def naive(q: Tensor, keys: list[Tensor], values: list[Tensor], scale: float) -> Tensor:
    """One query over a list of keys."""
    scores = [math.exp(scale * float(q @ k)) for k in keys]
    return sum((s / sum(scores) * v for s, v in zip(scores, values, strict=True)), torch.zeros_like(q))


@pytest.mark.parametrize("lengths", [[5, 3], [4, 4]])
def test_rows_see_their_prefix_and_what_they_wrote(lengths: list[int]) -> None:
    count, steps, heads, kv, width, scale = 3, 2, 4, 2, 8, 0.3
    layout = Layout(lengths, [[steps] * count] * 2, torch.device("cpu"))
    q = random(2, count, steps, heads, width)
    k, v = random(2, 2, count, steps, kv, width)
    kp, vp = random(2, 2, max(lengths), kv, width)
    bias = None if layout.bias is None else layout.bias.double()
    out = SharedAttention.apply(q, k, v, kp, vp, bias, scale)
    for b in range(2):
        for g in range(count):
            for s in range(steps):
                for h in range(heads):
                    j = h // (heads // kv)
                    keys = [*kp[b, : lengths[b], j], *k[b, g, : s + 1, j]]
                    values = [*vp[b, : lengths[b], j], *v[b, g, : s + 1, j]]
                    torch.testing.assert_close(
                        out[b, g, s, h], naive(q[b, g, s, h], keys, values, scale), atol=1e-6, rtol=1e-6
                    )


def test_gradients_are_those_of_finite_differences() -> None:
    layout = Layout([3, 2], [[2, 2]] * 2, torch.device("cpu"))
    assert layout.bias is not None
    inputs = [
        random(2, 2, 2, 4, 4),
        random(2, 2, 2, 2, 4),
        random(2, 2, 2, 2, 4),
        random(2, 3, 2, 4),
        random(2, 3, 2, 4),
    ]
    inputs = [x.requires_grad_() for x in inputs]
    bias = layout.bias.double()
    assert torch.autograd.gradcheck(lambda *x: SharedAttention.apply(*x, bias, 0.5), inputs, atol=1e-5, fast_mode=True)


def test_merging_is_attention_over_both() -> None:
    q, k, v = random(1, 2, 3, 8), random(1, 2, 6, 8), random(1, 2, 6, 8)
    whole, whole_lse = attend(q, k, v, 0.4)
    parts = [attend(q, k[:, :, s], v[:, :, s], 0.4) for s in (slice(2), slice(2, 6))]
    out, lse = merge(*parts[0], *parts[1])
    torch.testing.assert_close(out, whole, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(lse, whole_lse, atol=1e-6, rtol=1e-6)


def test_spread_and_back() -> None:
    spread = Spread([2, 0, 3], (2, 2, 3), [0, 1, 3], torch.device("cpu"))
    x = torch.arange(1, 6.0)[:, None]
    wide = spread(x)
    assert wide.shape == (2, 2, 3, 1) and not spread.full
    assert wide[0, 0, :2, 0].tolist() == [1, 2] and wide[1, 1, :, 0].tolist() == [3, 4, 5]
    assert torch.equal(spread.back(wide), x)
    full = Spread([3, 3], (2, 3), [0, 1], torch.device("cpu"))
    assert full.full and full(torch.zeros(6, 2)).shape == (2, 3, 2)


def test_padding_is_never_seen() -> None:
    """Whatever stands in the padding of a prompt, nothing changes."""
    layout = Layout([4, 2], [[3], [2]], torch.device("cpu"))
    q, k, v = random(11, 4, 8), random(11, 2, 8), random(11, 2, 8)
    kp, vp = layout.prefix(k[:6]), layout.prefix(v[:6])
    worse_k, worse_v = kp.clone(), vp.clone()
    worse_k[1, 2:] = 1e3
    worse_v[1, 2:] = -1e3
    for a, b in ((kp, vp), (worse_k, worse_v)):
        result = (
            layout.prefix_attention(layout.prefix(q[:6]), a, b, 0.3),
            layout.last_attention(q[layout.ends], a, b, 0.3),
            layout.suffix_attention(q[6:], k[6:], v[6:], a, b, 0.3),
        )
        if a is kp:
            expected = result
            torch.testing.assert_close(result[1], result[0][layout.ends], atol=1e-6, rtol=1e-6)
    for x, y in zip(result, expected, strict=True):
        torch.testing.assert_close(x, y)
