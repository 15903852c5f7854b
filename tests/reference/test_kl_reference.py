"""KL estimators against the loops, and their expectations against a KL known exactly."""

from __future__ import annotations

from typing import Any

import naive_core
import pytest
import torch

from mmrl.objective.kl import estimate


@pytest.mark.parametrize("estimator", ["k1", "abs", "k2", "k3"])
def test_equals_the_loop_and_its_slope(estimator: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    reference = -torch.rand(200, generator=generator, dtype=torch.float64) * 3
    log_prob = reference + torch.randn(200, generator=generator, dtype=torch.float64)
    log_prob[:4] = reference[:4] + torch.tensor([30.0, -30.0, -5.0, 1e-5], dtype=torch.float64)
    log_prob.requires_grad_()
    value = estimate(log_prob, reference, estimator)
    value.sum().backward()
    assert log_prob.grad is not None
    h = 1e-6
    for i in range(200):
        lp, q = float(log_prob[i].detach()), float(reference[i])
        assert value[i].item() == pytest.approx(naive_core.kl(lp, q, estimator), rel=1e-9, abs=1e-13)
        slope = (naive_core.kl(lp + h, q, estimator) - naive_core.kl(lp - h, q, estimator)) / (2 * h)
        assert float(log_prob.grad[i]) == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_k3_plus_has_the_value_of_k3_and_the_gradient_of_k2() -> None:
    reference = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64)
    log_prob = torch.tensor([-1.5, -1.0, -0.5], dtype=torch.float64, requires_grad=True)
    value = estimate(log_prob, reference, "k3+")
    torch.testing.assert_close(value, estimate(log_prob, reference, "k3"))
    (slope,) = torch.autograd.grad(value.sum(), log_prob)
    torch.testing.assert_close(slope, (log_prob - reference).detach())


def test_small_differences_keep_their_digits_in_float32() -> None:
    log_prob = torch.tensor([0.0], dtype=torch.float32)
    assert float(estimate(log_prob, log_prob + 1e-4, "k3")) == pytest.approx(5e-9, rel=1e-2)


def test_a_far_reference_gives_a_finite_gradient() -> None:
    log_prob = torch.tensor([-200.0, 0.0], requires_grad=True)
    value = estimate(log_prob, torch.tensor([0.0, -200.0]), "k3")
    (slope,) = torch.autograd.grad(value.sum(), log_prob)
    assert value.tolist() == [10, 10] and slope.tolist() == [0, 0]


def expectation(estimator: Any) -> tuple[float, torch.Tensor]:
    """Exact expected value and expected gradient of an estimator over a categorical policy of four actions."""
    logits = torch.tensor([0.3, -0.2, 0.9, 0.0], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
    log_p = logits.log_softmax(0)
    value = estimate(log_p, q, estimator)
    (gradient,) = torch.autograd.grad((log_p.exp().detach() * value).sum(), logits)
    return float((log_p.exp() * value).sum().detach()), gradient


def exact(forward: bool) -> tuple[float, torch.Tensor]:
    logits = torch.tensor([0.3, -0.2, 0.9, 0.0], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
    log_p = logits.log_softmax(0)
    kl = (q.exp() * (q - log_p)).sum() if forward else (log_p.exp() * (log_p - q)).sum()
    (gradient,) = torch.autograd.grad(kl, logits)
    return float(kl.detach()), gradient


def test_expected_values_and_gradients_are_what_the_docstring_says() -> None:
    reverse, reverse_gradient = exact(forward=False)
    _, forward_gradient = exact(forward=True)
    for estimator in ("k1", "k3", "k3+"):
        assert expectation(estimator)[0] == pytest.approx(reverse, rel=1e-12)
    torch.testing.assert_close(expectation("k1")[1], torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(expectation("k2")[1], reverse_gradient)
    torch.testing.assert_close(expectation("k3+")[1], reverse_gradient)
    torch.testing.assert_close(expectation("k3")[1], forward_gradient)
