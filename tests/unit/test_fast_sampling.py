"""Stateless sampling: what a row draws depends on its seed, the step and its logits alone."""

from __future__ import annotations

import math

import torch

from mmrl.vlm.fast.sampling import choose, uniforms

MASK = 2**64 - 1


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def test_uniforms_are_those_of_unsigned_integers() -> None:
    seeds = [0, 1, -1, 2**63, 2**64 - 1, 123456789]
    found = uniforms(seeds, 5)
    for i, seed in enumerate(seeds):
        for t in range(5):
            bits = mix((mix(seed % 2**64) + (t + 1) * 0x9E3779B97F4A7C15) & MASK)
            assert float(found[i, t]) == ((bits >> 12) + 0.5) * 2.0**-52
    # the published first output of the generator from state 0
    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


def test_uniforms_are_uniform_and_unrelated() -> None:
    u = uniforms(range(400), 250)
    assert float(u.min()) > 0 and float(u.max()) < 1
    counts = torch.histc(u.float(), 50, 0, 1)
    assert float(((counts - 2000) ** 2 / 2000).sum()) < 100  # chi-square of 49 degrees of freedom: p of about 2e-5
    for other in (u[1:, :], u[:, 1:]):
        base = u[: other.shape[0], : other.shape[1]]
        assert abs(float(torch.corrcoef(torch.stack((base.flatten(), other.flatten())))[0, 1])) < 0.015


def test_frequencies_are_those_of_the_distribution() -> None:
    logits = torch.tensor([1.0, -2.0, 0.5, float("-inf"), 3.0, 0.0])
    n = 40_000
    token, log_prob = choose(logits.expand(n, -1), uniforms([5], n)[0], 1.7)
    p = (logits.double() / 1.7).softmax(-1)
    share = torch.bincount(token, minlength=6).double() / n
    assert share[3] == 0
    assert bool(((share - p).abs() < 5 * (p * (1 - p) / n).sqrt() + 1e-12).all())
    torch.testing.assert_close(log_prob, p.log()[token].float(), atol=1e-6, rtol=1e-5)
    assert log_prob.dtype == torch.float32


def test_the_edges_of_the_unit_interval_are_possible_tokens() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, 0.0, float("-inf")]] * 3)
    token, _ = choose(logits, torch.tensor([2.0**-53, 0.5, 1 - 2.0**-53], dtype=torch.float64), 1.0)
    assert token.tolist() == [1, 2, 2]


def test_greedy_takes_the_largest_and_reports_temperature_one() -> None:
    logits = torch.tensor([[0.1, 0.3, 0.2], [5.0, 1.0, 4.0]])
    token, log_prob = choose(logits, torch.full((2,), 0.999, dtype=torch.float64), 0.0)
    assert token.tolist() == [1, 0]
    expected = 0.3 - math.log(math.exp(0.1) + math.exp(0.3) + math.exp(0.2))
    assert abs(float(log_prob[0]) - expected) < 1e-6


def test_rows_do_not_know_of_each_other() -> None:
    g = torch.Generator().manual_seed(0)
    logits, u = torch.randn(50, 900, generator=g), uniforms(range(50), 1)[:, 0]
    token, log_prob = choose(logits, u, 0.8)
    order = torch.randperm(50, generator=g)[:20]
    again = choose(logits[order], u[order], 0.8)
    assert torch.equal(again[0], token[order]) and torch.equal(again[1], log_prob[order])
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    try:
        other = choose(logits, u, 0.8)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(other[0], token) and torch.equal(other[1], log_prob)
