"""Losses on finished samples against loops written from their formulas, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl.generative.forward.crd import crd, implied_reward
from mmrl.generative.forward.dgpo import dgpo
from mmrl.generative.forward.dpo import diffusion_dpo
from mmrl.generative.forward.errors import weighted
from mmrl.generative.forward.guard import guarded, moved, trusted
from mmrl.generative.forward.nft import nft
from mmrl.generative.forward.renoise import Noised
from mmrl.objective.forward import Weighting

N, D = 6, 5
GROUP = [0, 0, 0, 1, 1, 1]


def case(seed: int = 0) -> tuple[Noised, Tensor, Tensor]:
    """Predictions of six rows in two groups, the old velocities, and advantages, two of them beyond 5 and two alike."""
    g = torch.Generator().manual_seed(seed)
    clean, eps, v, old = (torch.randn(N, D, generator=g, dtype=torch.float64) for _ in range(4))
    level = torch.rand(N, generator=g, dtype=torch.float32) * 0.9 + 0.05
    t = level.double()[:, None]
    noised = Noised(v.requires_grad_(), eps - clean, (1 - t) * clean + t * eps, clean, level, torch.tensor(GROUP))
    return noised, old, torch.tensor([0.3, -1.0, 7.0, -6.0, 0.5, 0.5], dtype=torch.float64)


def gradient(loss: Tensor, leaf: Tensor) -> list[float]:
    (found,) = torch.autograd.grad(loss, leaf)
    return found.flatten().tolist()


def numeric(function: Any, leaf: Tensor, step: float = 1e-6) -> list[float]:
    """Central differences of a function of nested lists."""
    found = []
    for i in range(leaf.shape[0]):
        for j in range(leaf.shape[1]):
            values = []
            for sign in (1, -1):
                moved = leaf.detach().clone()
                moved[i, j] += sign * step
                values.append(function(moved.tolist()))
            found.append((values[0] - values[1]) / (2 * step))
    return found


def square(v: list[float], u: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(v, u, strict=True)) / len(v)


def absolute(v: list[float], u: list[float]) -> float:
    return max(sum(abs(a - b) for a, b in zip(v, u, strict=True)) / len(v), 1e-5)


def naive_nft(v: Any, fixed: Any, noised: Noised, old: Any, advantage: Any, beta: float) -> float:
    """`fixed` are the velocities that the weights, which have no gradient, are made of."""
    total = 0.0
    for i in range(N):
        r = min(max(advantage[i] / 5, -1), 1) / 2 + 0.5
        t, x, clean = float(noised.level[i]), noised.x[i].tolist(), noised.clean[i].tolist()
        for share, sign in ((r, 1), (1 - r, -1)):
            off, size = 0.0, 0.0
            for k in range(D):
                one = sign * beta * v[i][k] + (1 - sign * beta) * old[i][k]
                same = sign * beta * fixed[i][k] + (1 - sign * beta) * old[i][k]
                off += (x[k] - t * one - clean[k]) ** 2 / D
                size += abs(x[k] - t * same - clean[k]) / D
            total += 5 * share * off / max(size, 1e-5) / beta
    return total


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_nft(beta: float) -> None:
    noised, old, advantage = case()
    loss = nft(noised, old, advantage, beta, 5.0).sum()
    fixed = noised.output.tolist()

    def of(v: Any) -> float:
        return naive_nft(v, fixed, noised, old.tolist(), advantage.tolist(), beta)

    assert loss.item() == pytest.approx(of(fixed), rel=1e-6)
    assert gradient(loss, noised.output) == pytest.approx(numeric(of, noised.output), rel=1e-5, abs=1e-7)


def naive_dgpo(v: Any, fixed: Any, target: Any, old: Any, advantage: Any, beta: float) -> float:
    total = 0.0
    for i in range(N):
        mates = [j for j in range(N) if GROUP[j] == GROUP[i]]
        pull = 0.0
        for j in mates:
            pull += advantage[j] * beta * (square(fixed[j], target[j]) - square(old[j], target[j])) / len(mates)
        total += advantage[i] * square(v[i], target[i]) / (1 + math.exp(-pull))
    return total


def test_dgpo() -> None:
    noised, old, advantage = case()
    target = noised.target
    error, older = ((one - target).square().mean(1) for one in (noised.output, old))
    loss = dgpo(error, older, advantage, noised.group, 2.0).sum()
    fixed = noised.output.tolist()

    def of(v: Any) -> float:
        return naive_dgpo(v, fixed, target.tolist(), old.tolist(), advantage.tolist(), 2.0)

    assert loss.item() == pytest.approx(of(fixed), rel=1e-9)
    assert gradient(loss, noised.output) == pytest.approx(numeric(of, noised.output), rel=1e-5, abs=1e-8)


def test_dgpo_has_the_gradient_of_the_groups_logistic_loss() -> None:
    noised, old, advantage = case()
    error, older = ((one - noised.target).square().mean(1) for one in (noised.output, old))
    ours = gradient(dgpo(error, older, advantage, noised.group, 2.0).sum(), error)
    whole = torch.zeros((), dtype=torch.float64)
    for key in (0, 1):
        rows = [i for i in range(N) if GROUP[i] == key]
        pull = sum(2.0 * advantage[i] * (error[i] - older[i]) for i in rows) / len(rows)
        whole = whole - len(rows) * torch.nn.functional.logsigmoid(-pull) / 2.0  # type: ignore[operator]
    assert ours == pytest.approx(gradient(whole, error), rel=1e-9)


def naive_crd(
    v: Any, fixed: Any, target: Any, old: Any, advantage: Any, beta: float, adaptive: bool, kind: str
) -> float:
    def implied(velocities: Any) -> list[float]:
        found = []
        for i in range(N):
            own = absolute(fixed[i], target[i]) if adaptive else 1.0
            before = absolute(old[i], target[i]) if adaptive else 1.0
            found.append(-(square(velocities[i], target[i]) / own - square(old[i], target[i]) / before))
        return found

    a = [min(max(one / 5, -1), 1) / 2 + 0.5 for one in advantage]
    new, same = implied(v), implied(fixed)
    total = 0.0
    for i in range(N):
        mates = [j for j in range(N) if GROUP[j] == GROUP[i]]
        said = beta * (new[i] - sum(same[j] for j in mates) / len(mates))
        wanted = a[i] - sum(a[j] for j in mates) / len(mates)
        if kind == "square":
            total += 5 / beta * (said - wanted) ** 2
        else:
            p, q = 1 / (1 + math.exp(-said)), 1 / (1 + math.exp(-wanted))
            total += 5 / beta * -(q * math.log(p) + (1 - q) * math.log(1 - p))
    return total


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("kind", ["square", "cross_entropy"])
def test_crd(adaptive: bool, kind: Any) -> None:
    noised, old, advantage = case()
    loss = crd(implied_reward(noised, old, adaptive), advantage, noised.group, 0.5, 5.0, kind).sum()
    fixed, target = noised.output.tolist(), noised.target.tolist()

    def of(v: Any) -> float:
        return naive_crd(v, fixed, target, old.tolist(), advantage.tolist(), 0.5, adaptive, kind)

    assert loss.item() == pytest.approx(of(fixed), rel=1e-9)
    assert gradient(loss, noised.output) == pytest.approx(numeric(of, noised.output), rel=1e-5, abs=1e-7)


def naive_dpo(v: Any, target: Any, old: Any, advantage: Any, beta: float) -> float:
    """Twice the sum over pairs: each of the two rows has the pair's loss."""
    total = 0.0
    for key in sorted(set(GROUP)):
        rows = [i for i in range(N) if GROUP[i] == key]
        best, worst = max(rows, key=lambda i: advantage[i]), min(rows, key=lambda i: advantage[i])
        off = [square(v[i], target[i]) - square(old[i], target[i]) for i in (best, worst)]
        total += 2 * math.log(1 + math.exp(beta / 2 * (off[0] - off[1])))
    return total


def test_diffusion_dpo() -> None:
    noised, old, advantage = case()
    error, older = ((one - noised.target).square().mean(1) for one in (noised.output, old))
    rows = diffusion_dpo(error, older, advantage, noised.group, 3.0)
    assert (rows != 0).tolist() == [False, True, True, True, True, False]

    def of(v: Any) -> float:
        return naive_dpo(v, noised.target.tolist(), old.tolist(), advantage.tolist(), 3.0)

    assert float(rows.sum()) == pytest.approx(of(noised.output.tolist()), rel=1e-9)
    assert gradient(rows.sum(), noised.output) == pytest.approx(numeric(of, noised.output), rel=1e-5, abs=1e-8)


def test_diffusion_dpo_of_a_group_without_a_preference_is_zero() -> None:
    noised, old, _ = case()
    error, older = ((one - noised.target).square().mean(1) for one in (noised.output, old))
    assert not diffusion_dpo(error, older, torch.ones(N), noised.group, 3.0).any()
    assert not diffusion_dpo(error[:1], older[:1], torch.ones(1), noised.group[:1], 3.0).any()


@pytest.mark.parametrize("weight", ["uniform", "t", "t2", "huber", "ghuber"])
def test_weights_of_the_matching_error(weight: Weighting) -> None:
    error, level = torch.tensor([0.0, 1e-6, 0.3, 4.0]).double(), torch.tensor([0.1, 0.5, 0.9, 1.0]).double()
    for e, t, found in zip(error.tolist(), level.tolist(), weighted(error, level, weight).tolist(), strict=True):
        wanted = {
            "uniform": e,
            "t": t * e,
            "t2": t * t * e,
            "huber": t * (math.sqrt(e + 1e-10) - 1e-5),
            "ghuber": t / 0.25 * ((e + 1e-10) ** 0.25 - (1e-10) ** 0.25),
        }[weight]
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-15)


def steps_case() -> tuple[list[float], list[float], Tensor, Tensor, list[float], list[float]]:
    """New and old log-probs, new and old means, stds and advantages of six steps; some have moved far, both ways."""
    g = torch.Generator().manual_seed(5)
    old = torch.randn(N, generator=g, dtype=torch.float64)
    new = old + torch.tensor([0.004, -0.004, 0.003, -0.003, 0.002, -0.002], dtype=torch.float64)
    before = torch.randn(N, D, generator=g, dtype=torch.float64)
    size = torch.tensor([0.02, 0.02, 1e-4, 1e-4, 0.02, 0.02], dtype=torch.float64)[:, None]
    after = before + size * torch.randn(N, D, generator=g, dtype=torch.float64)
    return new.tolist(), old.tolist(), after, before, [0.9, 0.5, 0.9, 0.5, 0.9, 0.5], [1.0, -2.0, 0.5, -1.0, -1.0, 2.0]


def test_grpo_guard() -> None:
    new, old, after, before, std, advantage = steps_case()
    wide = torch.tensor(std, dtype=torch.float64)
    drift = moved(after, before, wide[:, None])
    loss, _ = guarded(
        torch.tensor(new).double(),
        torch.tensor(old).double(),
        drift,
        wide,
        torch.tensor(advantage).double(),
        1e-3,
        1e-3,
    )
    for i in range(N):
        own = square(after[i].tolist(), before[i].tolist()) / (2 * std[i] ** 2)
        ratio = math.exp(std[i] * (float(torch.tensor(new[i])) - float(torch.tensor(old[i])) + own))
        clipped = min(max(ratio, 1 - 1e-3), 1 + 1e-3)
        assert float(loss[i]) == pytest.approx(max(-advantage[i] * ratio, -advantage[i] * clipped), rel=1e-6)


def test_flow_dppo_stops_only_steps_that_are_far_and_move_away() -> None:
    new, old, after, before, std, advantage = steps_case()
    wide = torch.tensor(std, dtype=torch.float64)
    leaf = torch.tensor(new, dtype=torch.float64, requires_grad=True)
    drift = moved(after, before, wide[:, None])
    loss, seen = trusted(leaf, torch.tensor(old).double(), drift, torch.tensor(advantage).double(), 1e-5)
    wanted = []
    for i in range(N):
        far = square(after[i].tolist(), before[i].tolist()) / (2 * std[i] ** 2) >= 1e-5
        ratio = math.exp(new[i] - old[i])
        away = (advantage[i] > 0 and ratio > 1) or (advantage[i] < 0 and ratio < 1)
        wanted.append(0.0 if far and away else -advantage[i] * ratio)
    assert loss.tolist() == pytest.approx(wanted, rel=1e-6)
    assert gradient(loss.sum(), leaf) == pytest.approx(wanted, rel=1e-6)  # d ratio = ratio d log p
    assert (seen.low | seen.high).tolist() == [True, True, False, False, False, False]
