"""Transitions against loops written from the formulas, number by number in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl.generative.transition import Transition, ddim_transition, flow_transition, kl_divergence

SIGMAS = [1.0, 0.9, 0.7, 0.4, 0.15, 0.0]
LEVEL = {"flow_sde": 0.7, "dance_sde": 0.3, "cps": 0.8, "ode": 0.0}
STEPS = torch.tensor([0, 1, 2, 4, 3])
SHAPE = (5, 3, 2, 4)


def data(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    v, x, z = (torch.randn(SHAPE, generator=g) for _ in range(3))
    return v, x, z


def naive_flow(
    v: float, x: float, s0: float, s1: float, kind: str, level: float, sigma_max: float
) -> tuple[float, float]:
    """Mean and full std of one number."""
    d = s0 - s1
    x0h, eh = x - s0 * v, x + (1 - s0) * v
    if kind == "ode":
        return x - d * v, 0.0
    if kind == "cps":
        return (1 - s1) * x0h + s1 * math.cos(level * math.pi / 2) * eh, s1 * math.sin(level * math.pi / 2)
    g = level
    if kind == "flow_sde":
        g = level * math.sqrt(s0 / (1 - (sigma_max if s0 == 1 else s0)))
    return x - d * (v + g * g / (2 * s0) * eh), g * math.sqrt(d)


def naive_log_prob(x_next: list[float], mean: list[float], std: float, kind: str) -> float:
    total = 0.0
    for a, m in zip(x_next, mean, strict=True):
        if kind == "cps":
            total += -((a - m) ** 2)
        else:
            total += -((a - m) ** 2) / (2 * std * std) - math.log(std) - 0.5 * math.log(2 * math.pi)
    return total / len(mean)


def step(kind: str, seed: int = 0, **options: Any) -> Transition:
    v, x, z = data(seed)
    sigmas = torch.tensor(SIGMAS)
    options.setdefault("noise", z)
    return flow_transition(
        v, x, sigmas[STEPS], sigmas[STEPS + 1], kind=kind, level=LEVEL[kind], sigma_max=sigmas[1], **options
    )


@pytest.mark.parametrize("kind", LEVEL)
def test_rows_at_different_steps_match_the_formula(kind: str) -> None:
    v, x, _ = data()
    found = step(kind)
    for row, k in enumerate(STEPS.tolist()):
        pairs = [
            naive_flow(a, b, SIGMAS[k], SIGMAS[k + 1], kind, LEVEL[kind], SIGMAS[1])
            for a, b in zip(v[row].flatten().tolist(), x[row].flatten().tolist(), strict=True)
        ]
        means, std = [p[0] for p in pairs], pairs[0][1]
        assert found.mean[row].flatten().tolist() == pytest.approx(means, rel=1e-5, abs=1e-5)
        assert float(found.std[row]) == pytest.approx(std, rel=1e-5)
        assert bool(found.random[row]) == (std > 0)
        wanted = naive_log_prob(found.x_next[row].flatten().double().tolist(), means, std, kind) if std else 0.0
        assert float(found.log_prob[row]) == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_sigma_close_to_one_does_not_blow_up() -> None:
    """A schedule that starts at .999 uses sigma_max in the denominator, as one that starts at 1 does."""
    v, x, z = data()
    found = flow_transition(v, x, 0.999, 0.874, kind="flow_sde", level=0.7, sigma_max=0.874, noise=z)
    assert float(found.std[0]) == pytest.approx(0.7 * math.sqrt(0.999 / (1 - 0.874)) * math.sqrt(0.125), rel=1e-4)


@pytest.mark.parametrize("kind", ["flow_sde", "dance_sde", "cps"])
def test_without_noise_the_mean_is_the_ode_step(kind: str) -> None:
    v, x, _ = data()
    sigmas = torch.tensor(SIGMAS)
    arguments: dict[str, Any] = {"sigma_max": sigmas[1], "noise": torch.zeros_like(x)}
    quiet = flow_transition(v, x, sigmas[STEPS], sigmas[STEPS + 1], kind=kind, level=1e-4, **arguments)
    ode = flow_transition(v, x, sigmas[STEPS], sigmas[STEPS + 1], kind="ode", level=0.0, **arguments)
    torch.testing.assert_close(quiet.mean, ode.mean, rtol=0, atol=1e-5)
    silent = flow_transition(v, x, sigmas[STEPS], sigmas[STEPS + 1], kind=kind, level=0.0, **arguments)
    assert not silent.random.any() and torch.isfinite(silent.log_prob).all()


def test_a_stochastic_step_needs_noise_or_a_sample() -> None:
    with pytest.raises(ValueError, match="needs noise"):
        step("flow_sde", noise=None)


def test_the_gradient_flows_through_the_mean_alone() -> None:
    v, x, z = data()
    v.requires_grad_()
    found = flow_transition(v, x, 0.7, 0.4, kind="dance_sde", level=0.3, sigma_max=0.9, noise=z)
    found.log_prob.sum().backward()
    # d/dv of -(x' - mu)^2 / (2 s^2) / d, with dmu/dv = -D (1 + g^2 (1 - sigma) / (2 sigma)), is z/s dmu/dv / d
    slope = -0.3 * (1 + 0.09 * 0.3 / 1.4)
    wanted = z / (0.3 * math.sqrt(0.3)) * slope / z[0].numel()
    assert not found.x_next.requires_grad and v.grad is not None
    torch.testing.assert_close(v.grad, wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_ddim_matches_the_formula(prediction: str) -> None:
    out, x, z = data(1)
    before, after, eta = [0.1, 0.5, 0.9, 0.3, 0.99], [0.3, 0.7, 0.95, 0.31, 1.0], 0.6
    found = ddim_transition(
        out,
        x,
        torch.tensor(before),
        torch.tensor(after),
        eta,
        prediction,
        noise=z,  # type: ignore[arg-type]
    )
    for row, (a, p) in enumerate(zip(before, after, strict=True)):
        s2 = eta**2 * (1 - p) / (1 - a) * (1 - a / p)
        means = []
        for m, value in zip(out[row].flatten().tolist(), x[row].flatten().tolist(), strict=True):
            if prediction == "epsilon":
                e, x0 = m, (value - math.sqrt(1 - a) * m) / math.sqrt(a)
            else:
                e, x0 = math.sqrt(a) * m + math.sqrt(1 - a) * value, math.sqrt(a) * value - math.sqrt(1 - a) * m
            means.append(math.sqrt(p) * x0 + math.sqrt(max(1 - p - s2, 0)) * e)
        assert found.mean[row].flatten().tolist() == pytest.approx(means, rel=1e-4, abs=1e-5)
        assert float(found.std[row]) == pytest.approx(math.sqrt(s2), rel=1e-4, abs=1e-7)
        assert bool(found.random[row]) == (p < 1)
        if p < 1:
            wanted = naive_log_prob(found.x_next[row].flatten().double().tolist(), means, math.sqrt(s2), "ddim")
            assert float(found.log_prob[row]) == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    assert torch.isfinite(found.log_prob).all()


@pytest.mark.parametrize("kind", ["flow_sde", "dance_sde", "cps"])
def test_the_three_norms_of_the_kl(kind: str) -> None:
    p = step(kind)
    q = step(kind, seed=5, noise=None, x_next=p.x_next)
    found = {norm: kl_divergence(p, q, norm).tolist() for norm in ("s2", "g2", "v")}  # type: ignore[arg-type]
    for row, k in enumerate(STEPS.tolist()):
        gap = (p.mean[row] - q.mean[row]).double()
        square, std, d = float((gap**2).mean()), float(p.std[row]), SIGMAS[k] - SIGMAS[k + 1]
        velocity = float(((p.output[row] - q.output[row]).double() ** 2).mean())
        assert found["v"][row] == pytest.approx(velocity, rel=1e-4)
        if std == 0:
            assert found["s2"][row] == found["g2"][row] == 0
            continue
        assert found["s2"][row] == pytest.approx(square / (2 * std**2), rel=1e-4)
        assert found["g2"][row] == pytest.approx(square if kind == "cps" else square / (2 * std**2 / d), rel=1e-4)


def test_the_exact_kl_is_the_mean_of_the_log_ratio() -> None:
    """Monte Carlo: E_p[log p - log q] of the real (mean-reduced) log-probs."""
    g = torch.Generator().manual_seed(3)
    v, w, x = torch.randn(3, 1, 8, generator=g)
    rows = 40_000
    arguments: dict[str, Any] = {"kind": "flow_sde", "level": 0.7, "sigma_max": 0.9}
    p = flow_transition(
        v.expand(rows, 8), x.expand(rows, 8), 0.7, 0.4, noise=torch.randn(rows, 8, generator=g), **arguments
    )
    q = flow_transition((v + 0.3 * w).expand(rows, 8), x.expand(rows, 8), 0.7, 0.4, x_next=p.x_next, **arguments)
    assert float((p.log_prob - q.log_prob).mean()) == pytest.approx(float(kl_divergence(p, q, "s2")[0]), rel=0.05)


def test_g2_is_refused_for_ddim() -> None:
    out, x, z = data()
    p = ddim_transition(out, x, 0.5, 0.7, 1.0, "epsilon", noise=z)
    with pytest.raises(ValueError, match="g2"):
        kl_divergence(p, p, "g2")
