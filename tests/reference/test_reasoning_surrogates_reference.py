"""GSPO, GMPO, CISPO and SAPO against the loops, and their gradients against finite differences of the loops."""

from __future__ import annotations

from collections.abc import Callable

import naive_reasoning as naive
import pytest
import torch
from torch import Tensor

from mmrl.objective.archer import Archer, ByEntropy, uncertain
from mmrl.objective.aspo import Aspo
from mmrl.objective.batch import UnitBatch
from mmrl.objective.cispo import Cispo
from mmrl.objective.dcpo import Dcpo
from mmrl.objective.kl import KL, REFERENCE, estimate
from mmrl.objective.sapo import Sapo
from mmrl.objective.sequence import Gmpo, Gspo
from mmrl.objective.surrogate import Surrogate
from mmrl.rollout import StepOutput

LENGTHS = (5, 3, 1, 0, 4, 5, 2, 5)


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs, old ones, an advantage per step, mask; steps after a row's length hold junk."""
    g = torch.Generator().manual_seed(0)
    old = -torch.rand(8, 5, generator=g, dtype=torch.float64) * 3
    log_prob = old + torch.randn(8, 5, generator=g, dtype=torch.float64) * 0.5
    advantage = torch.randn(8, 5, generator=g, dtype=torch.float64)
    mask = torch.arange(5)[None] < torch.tensor(LENGTHS)[:, None]
    return log_prob.masked_fill(~mask, 0), old.masked_fill(~mask, 0), advantage, mask


def slopes(of: Callable[[Tensor], float], at: Tensor, mask: Tensor, h: float = 1e-6) -> Tensor:
    found = torch.zeros_like(at)
    for i, k in mask.nonzero().tolist():
        up, down = at.clone(), at.clone()
        up[i, k] += h
        down[i, k] -= h
        found[i, k] = (of(up) - of(down)) / (2 * h)
    return found


def row_mean_loss(surrogate: Surrogate, log_prob: Tensor, old: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    loss, _ = surrogate(log_prob, old, advantage, mask)
    return ((loss * mask).sum(1) / mask.sum(1).clamp(min=1)).sum()


def rows(values: Tensor, i: int) -> list[float]:
    return values[i, : LENGTHS[i]].tolist()


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_gspo(level: str) -> None:
    log_prob, old, advantage, mask = inputs()
    advantage = advantage[:, :1].expand_as(old)
    surrogate = Gspo(level=level, low=0.1, high=0.15)  # type: ignore[arg-type]

    def loop(at: Tensor) -> float:
        return sum(
            naive.gspo(rows(at, i), rows(old, i), float(advantage[i, 0]), 0.1, 0.15) for i in range(8) if LENGTHS[i]
        )

    leaf = log_prob.clone().requires_grad_()
    loss = row_mean_loss(surrogate, leaf, old, advantage, mask)
    loss.backward()
    assert leaf.grad is not None
    assert float(loss.detach()) == pytest.approx(loop(log_prob), rel=1e-12)
    torch.testing.assert_close(leaf.grad, slopes(loop, log_prob, mask), rtol=1e-5, atol=1e-6)
    _, seen = surrogate(log_prob, old, advantage, mask)
    assert (seen.low | seen.high)[mask].any() and not (seen.low | seen.high)[mask].all()


def test_gmpo() -> None:
    log_prob, old, advantage, mask = inputs()
    advantage[0] = 0

    def loop(at: Tensor) -> float:
        own = [i for i in range(8) if LENGTHS[i]]
        return sum(naive.gmpo(rows(at, i), rows(old, i), rows(advantage, i), 0.2, 0.3) for i in own)

    leaf = log_prob.clone().requires_grad_()
    loss = row_mean_loss(Gmpo(low=0.2, high=0.3), leaf, old, advantage, mask)
    loss.backward()
    assert leaf.grad is not None
    assert float(loss.detach()) == pytest.approx(loop(log_prob), rel=1e-12)
    torch.testing.assert_close(leaf.grad, slopes(loop, log_prob, mask), rtol=1e-5, atol=1e-6)


def test_cispo_weights_the_score_and_drops_no_gradient() -> None:
    log_prob, old, advantage, mask = inputs()
    leaf = log_prob.clone().requires_grad_()
    loss, seen = Cispo(ratio_cap=1.2)(leaf, old, advantage, mask)
    loss.sum().backward()
    assert leaf.grad is not None
    for i, k in mask.nonzero().tolist():
        lp, o, a = float(log_prob[i, k]), float(old[i, k]), float(advantage[i, k])
        assert float(leaf.grad[i, k]) == pytest.approx(naive.cispo_slope(lp, o, a, 1.2), rel=1e-12)
    assert torch.equal(seen.high, log_prob - old > torch.tensor(1.2, dtype=torch.float64).log()) and seen.high.any()
    assert (leaf.grad[mask] != 0).all()


def test_sapo() -> None:
    log_prob, old, advantage, mask = inputs()
    surrogate = Sapo(tau_positive=1.0, tau_negative=1.3)

    def loop(at: Tensor) -> float:
        cells = mask.nonzero().tolist()
        return sum(naive.sapo(float(at[i, k]), float(old[i, k]), float(advantage[i, k]), 1.0, 1.3) for i, k in cells)

    leaf = log_prob.clone().requires_grad_()
    loss = (surrogate(leaf, old, advantage, mask)[0] * mask).sum()
    loss.backward()
    assert leaf.grad is not None
    assert float(loss.detach()) == pytest.approx(loop(log_prob), rel=1e-12)
    torch.testing.assert_close(leaf.grad, slopes(loop, log_prob, mask), rtol=1e-5, atol=1e-6)


def entropies(mask: Tensor) -> Tensor:
    """Some are equal, so that steps stand on their quantile."""
    entropy = (torch.rand(8, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 4).round()
    return entropy.masked_fill(~mask, torch.nan)


def unit(old: Tensor, advantage: Tensor, mask: Tensor) -> UnitBatch:
    return UnitBatch(old, advantage, mask.double(), torch.ones_like(old), measured={"entropy": entropies(mask)})


@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.8, 1.0])
def test_uncertain_steps(quantile: float) -> None:
    mask = inputs()[3]
    entropy = entropies(mask)
    found = uncertain(entropy, mask, quantile)
    for i, k in mask.nonzero().tolist():
        assert bool(found[i, k]) == naive.is_uncertain(rows(entropy, i), k, quantile)
    assert not found[~mask].any() and found.any() == (quantile < 1)


@pytest.mark.parametrize("surrogate", [Archer(quantile=0.5), Aspo(quantile=0.5, cap=1.5)])
def test_ranges_by_entropy(surrogate: ByEntropy) -> None:
    """ASPO is a gradient; its value is that gradient's weight times -A where the weight is not capped."""
    log_prob, old, advantage, mask = inputs()
    batch = unit(old, advantage, mask)
    leaf = log_prob.clone().requires_grad_()
    loss, seen = surrogate.of_batch(leaf, old, batch)
    (loss * mask).sum().backward()
    assert leaf.grad is not None
    for i, k in mask.nonzero().tolist():
        lp, o, a = float(log_prob[i, k]), float(old[i, k]), float(advantage[i, k])
        width = 0.4 if naive.is_uncertain(rows(batch.measured["entropy"], i), k, 0.5) else 0.2
        if isinstance(surrogate, Aspo):
            slope = naive.aspo_slope(lp, o, a, width, 1.5)
        else:
            slope = (naive.archer(lp + 1e-6, o, a, width) - naive.archer(lp - 1e-6, o, a, width)) / 2e-6
            assert float(loss[i, k].detach()) == pytest.approx(naive.archer(lp, o, a, width), rel=1e-9)
        assert float(leaf.grad[i, k]) == pytest.approx(slope, abs=1e-6)
    for flags in (seen.low, seen.high, *((seen.dual,) if isinstance(surrogate, Aspo) else ())):
        assert flags[mask].any() and not flags[mask].all()


def test_kl_on_certain_steps_alone() -> None:
    log_prob, old, advantage, mask = inputs()
    batch, others = unit(old, advantage, mask), {REFERENCE: StepOutput(old)}
    value = KL(coef=1, on="certain", quantile=0.5).value(
        StepOutput(log_prob), batch, others, lambda p, q, n: p.log_prob
    )
    whole = estimate(log_prob, old, "k3")
    for i, k in mask.nonzero().tolist():
        off = naive.is_uncertain(rows(batch.measured["entropy"], i), k, 0.5)
        assert float(value[i, k]) == (0.0 if off else float(whole[i, k]))


def test_dcpo() -> None:
    log_prob, old, advantage, mask = inputs()
    surrogate = Dcpo(cap=1.5)

    def loop(at: Tensor) -> float:
        cells = mask.nonzero().tolist()
        return sum(
            naive.dcpo(float(at[i, k]), float(old[i, k]), float(advantage[i, k]), 0.16, 0.2, 1.5) for i, k in cells
        )

    leaf = log_prob.clone().requires_grad_()
    loss, seen = surrogate(leaf, old, advantage, mask)
    (loss * mask).sum().backward()
    assert leaf.grad is not None
    assert float((loss * mask).sum().detach()) == pytest.approx(loop(log_prob), rel=1e-12)
    torch.testing.assert_close(leaf.grad, slopes(loop, log_prob, mask), rtol=1e-5, atol=1e-6)
    assert seen.low[mask].any() and seen.high[mask].any() and seen.dual[mask].any()


@pytest.mark.parametrize("surrogate", [Gspo(), Gspo(level="token"), Gmpo(), Cispo(), Sapo(), Archer(), Aspo(), Dcpo()])
def test_on_policy_the_gradient_is_that_of_the_policy_gradient(surrogate: Surrogate) -> None:
    _, old, advantage, mask = inputs()
    advantage = advantage[:, :1].expand_as(old)
    leaf = old.clone().requires_grad_()
    loss, _ = surrogate.of_batch(leaf, old, unit(old, advantage, mask))
    ((loss * mask).sum(1) / mask.sum(1).clamp(min=1)).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, -advantage * mask / mask.sum(1, keepdim=True).clamp(min=1))
