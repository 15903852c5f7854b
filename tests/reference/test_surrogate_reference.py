"""Surrogates against the loops: values, and gradients against finite differences of the loop."""

from __future__ import annotations

import naive_core
import pytest
import torch

from mmrl.objective.surrogate import Clip, Reinforce, clipped, reinforce


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(40, 5, generator=generator, dtype=torch.float64) * 3
    log_prob = old + torch.randn(40, 5, generator=generator, dtype=torch.float64) * 0.6
    advantage = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    advantage[0], old[1], log_prob[2] = 0.0, -60.0, -60.0
    return log_prob, old, advantage


@pytest.mark.parametrize(
    ("low", "high", "dual"), [(0.2, 0.2, None), (0.2, 0.28, 3.0), (0.05, 0.5, 1.6), (1e-4, 1e-4, None)]
)
def test_clip_equals_the_loop_and_its_slope(low: float, high: float, dual: float | None) -> None:
    log_prob, old, advantage = inputs()
    log_prob.requires_grad_()
    loss, _ = clipped(log_prob, old, advantage, low, high, dual)
    loss.sum().backward()
    h = 1e-6
    for i in range(40):
        for k in range(5):
            lp, o, a = (float(x[i, k].detach()) for x in (log_prob, old, advantage))
            expected = naive_core.clip(lp, o, a, low, high, dual)
            assert loss[i, k].item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
            up, down = (naive_core.clip(lp + s, o, a, low, high, dual) for s in (h, -h))
            assert log_prob.grad is not None
            assert float(log_prob.grad[i, k]) == pytest.approx((up - down) / (2 * h), rel=1e-5, abs=1e-6)


def test_clip_reports_the_steps_whose_gradient_is_cut() -> None:
    log_prob, old, advantage = inputs()
    log_prob.requires_grad_()
    loss, seen = Clip(low=0.2, high=0.28, dual=3.0)(log_prob, old, advantage, torch.ones_like(old, dtype=torch.bool))
    loss.sum().backward()
    assert log_prob.grad is not None
    inside = (log_prob.detach() - old).abs() < 20
    cut = (log_prob.grad == 0) & (advantage != 0) & inside
    assert torch.equal(cut, (seen.low | seen.high | seen.dual) & inside)
    for part in (seen.low, seen.high, seen.dual):
        assert part.any() and not part.all()
    assert not (seen.low & seen.dual).any() and not (seen.low & seen.high).any()


def test_reinforce_is_the_score_function_gradient() -> None:
    log_prob, old, advantage = inputs()
    log_prob.requires_grad_()
    loss, seen = Reinforce()(log_prob, old, advantage, torch.ones_like(old, dtype=torch.bool))
    loss.sum().backward()
    for i in range(40):
        for k in range(5):
            assert loss[i, k].item() == pytest.approx(-float(advantage[i, k]) * float(log_prob[i, k].detach()))
    assert log_prob.grad is not None and torch.equal(log_prob.grad, -advantage)
    assert not seen.low.any() and not seen.high.any()
    assert torch.equal(reinforce(log_prob, old, advantage)[0], loss)


def test_on_policy_the_ratio_is_one_and_the_gradient_is_right() -> None:
    _, old, advantage = inputs()
    log_prob = old.clone().requires_grad_()
    loss, seen = clipped(log_prob, old, advantage, 0.2, 0.2)
    loss.sum().backward()
    assert torch.equal(loss, -advantage)
    assert log_prob.grad is not None and torch.equal(log_prob.grad, -advantage)
    assert not seen.low.any() and not seen.high.any()
