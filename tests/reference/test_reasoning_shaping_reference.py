"""Rewards and advantages of reasoners, group weights, importance weights and the entropy choice against the loops."""

from __future__ import annotations

import naive_reasoning as naive
import numpy as np
import pytest
import torch

from mmrl.advantage.care import consistency_bonus
from mmrl.advantage.length_gate import length_penalty
from mmrl.advantage.majority import majority
from mmrl.advantage.negative import with_virtual
from mmrl.advantage.noisy import backward, forward
from mmrl.advantage.vogue import entropy_bonus, visual_bonus
from mmrl.curriculum.puzzlecraft import group_weights
from mmrl.objective.correction import importance
from mmrl.objective.entropy import most_uncertain
from mmrl.objective.views import visual_kl
from mmrl.rollout import StepOutput


def ragged() -> tuple[np.ndarray, np.ndarray, list[str | None], np.random.Generator]:
    """0/1 rewards (two NaN) in 6 groups of 1 to 9 samples in mixed order, and answers, some missing."""
    rng = np.random.default_rng(1)
    group = rng.permutation(np.repeat(np.arange(6), [9, 7, 5, 4, 2, 1]))
    reward = (rng.random(len(group)) < 0.6).astype(np.float64)
    reward[group == 1] = 1
    reward[[3, 8]] = np.nan
    answers: list[str | None] = [None if k == 3 else "abc"[k] for k in rng.integers(0, 4, len(group))]
    answers = ["a" if g == 0 else None if g == 4 else a for a, g in zip(answers, group, strict=True)]
    return reward, group, answers, rng


def test_care() -> None:
    reward, group, _, rng = ragged()
    likely = rng.random(len(group))
    likely[::5] = np.nan
    expected = naive.care(reward.tolist(), likely.tolist(), group.tolist(), 0.5)
    np.testing.assert_allclose(consistency_bonus(reward, likely, group, 0.5), expected, atol=1e-12)
    assert any(expected) and not all(expected)


def test_majority() -> None:
    _, group, answers, _ = ragged()
    expected = naive.majority(answers, group.tolist())
    assert majority(answers, group).tolist() == expected and 0 < sum(expected) < len(group)


@pytest.mark.parametrize("virtual", [1, 3])
def test_ngrpo(virtual: int) -> None:
    reward, group, _, _ = ragged()
    expected = naive.ngrpo(reward.tolist(), group.tolist(), 1.0, virtual, 1e-6)
    np.testing.assert_allclose(with_virtual(reward, group, 1.0, virtual), expected, atol=1e-12)


@pytest.mark.parametrize("gate", [0.0, 0.5, 0.9])
def test_length_penalty(gate: float) -> None:
    reward, group, _, rng = ragged()
    length = rng.integers(1, 6, len(group)).astype(np.float64)
    expected = naive.length_penalty(reward.tolist(), length.tolist(), group.tolist(), gate, 0.3)
    np.testing.assert_allclose(length_penalty(reward, length, group, gate, 0.3), expected, atol=1e-12)
    assert any(expected)


@pytest.mark.parametrize(("power", "floor"), [(1.0, 0.1), (2.0, 0.9), (0.5, 0.0)])
def test_puzzle_weights(power: float, floor: float) -> None:
    reward, group, answers, _ = ragged()
    expected = naive.puzzle_weights(reward.tolist(), answers, group.tolist(), power, floor)
    np.testing.assert_allclose(group_weights(reward, answers, group, power, floor), expected, atol=1e-12)
    assert any(expected)


def test_noisy_verifier_in_expectation() -> None:
    """Over the verifier's noise: backward gives the clean reward, forward (1 - fp - fn) (clean - 1)."""
    fp, fn = 0.2, 0.15
    observed = np.array([0.0, 1.0])
    for clean in (0.0, 1.0):
        sees_one = 1 - fn if clean else fp
        chance = np.array([1 - sees_one, sees_one])
        assert float(chance @ backward(observed, fp, fn)) == pytest.approx(clean)
        assert float(chance @ forward(observed, fn)) == pytest.approx((1 - fp - fn) * (clean - 1))
    assert forward(np.array([np.nan]), fn)[0] == 0


def test_vogue_bonuses() -> None:
    rng = np.random.default_rng(0)
    advantage, uncertainty = rng.normal(size=40), rng.random(40) * 20
    advantage[:4] = 0
    expected = [a + min(0.1 * u, abs(a) / 2) for a, u in zip(advantage, uncertainty, strict=True)]
    found = visual_bonus(advantage, uncertainty, 0.1)
    np.testing.assert_allclose(found, expected)
    assert (np.sign(found) == np.sign(advantage)).all() and (found[:4] == 0).all()
    entropy = torch.rand(40, 3, dtype=torch.float64) * 50
    steps = entropy_bonus(torch.from_numpy(found)[:, None], entropy, 0.05)
    for i in range(40):
        for k in range(3):
            assert float(steps[i, k]) == pytest.approx(found[i] + min(0.05 * float(entropy[i, k]), abs(found[i]) / 2))


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_importance(level: str) -> None:
    g = torch.Generator().manual_seed(0)
    old = -torch.rand(5, 4, generator=g)
    engine = old + 0.4 * torch.randn(5, 4, generator=g)
    lengths = [4, 2, 1, 0, 3]
    mask = torch.arange(4)[None] < torch.tensor(lengths)[:, None]
    found = importance(old, engine, mask, level, 1.3)  # type: ignore[arg-type]
    for i, n in enumerate(lengths):
        expected = naive.importance(old[i, :n].tolist(), engine[i, :n].tolist(), level, 1.3) if n else []
        assert found[i, :n].tolist() == pytest.approx(expected, rel=1e-5)
        assert not found[i, n:].any()


@pytest.mark.parametrize("fraction", [0.2, 0.5, 1.0])
def test_most_uncertain(fraction: float) -> None:
    g = torch.Generator().manual_seed(0)
    entropy = torch.rand(6, 7, generator=g, dtype=torch.float64)
    mask = torch.arange(7)[None] < torch.tensor([7, 3, 1, 0, 5, 7])[:, None]
    pool = entropy[mask]
    whole, own = most_uncertain(mask, entropy, fraction, pool), most_uncertain(mask, entropy, fraction)
    for i in range(6):
        row = entropy[i][mask[i]].tolist()
        for k in range(7):
            x = float(entropy[i, k])
            assert bool(whole[i, k]) == (bool(mask[i, k]) and x >= naive.quantile(pool.tolist(), 1 - fraction) - 1e-9)
            assert bool(own[i, k]) == (bool(mask[i, k]) and x >= naive.quantile(row, 1 - fraction) - 1e-9)


def test_visual_kl() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (-torch.rand(4, 3, generator=g, dtype=torch.float64) * 3 for _ in range(2))
    leaf = a.clone().requires_grad_()
    value = visual_kl(StepOutput(leaf), StepOutput(b), "k3", 0.5, lambda p, q, norm: p.log_prob)
    value.sum().backward()
    value = value.detach()
    assert leaf.grad is not None
    for i in range(4):
        for k in range(3):
            x, y = float(a[i, k]), float(b[i, k])
            full = naive.k3(x, y)
            assert float(value[i, k]) == pytest.approx(min(full, 0.5))
            slope = 0.0 if full > 0.5 else (naive.k3(x + 1e-6, y) - naive.k3(x - 1e-6, y)) / 2e-6
            assert float(leaf.grad[i, k]) == pytest.approx(slope, abs=1e-6)
    exact = visual_kl(StepOutput(a), StepOutput(b), "full_kl", None, lambda p, q, norm: p.log_prob - q.log_prob)
    torch.testing.assert_close(exact, a - b)
