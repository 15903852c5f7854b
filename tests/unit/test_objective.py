"""The objective: its parts together, its loss, its numbers for the log."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from mmrl.advantage.group import DrAdvantage, GroupAdvantage
from mmrl.advantage.shaping import Clamp
from mmrl.advantage.types import Scored
from mmrl.components import build
from mmrl.curriculum.selection import BestOfN
from mmrl.errors import RunError, UserError
from mmrl.objective.aggregate import Counts, count, weights
from mmrl.objective.batch import UnitBatch
from mmrl.objective.kl import KL, REFERENCE, estimate
from mmrl.objective.metrics import finish, merge
from mmrl.objective.objective import Objective
from mmrl.objective.sequence import PER_SAMPLE, Gmpo, Gspo
from mmrl.objective.steps import RandomSteps
from mmrl.objective.surrogate import Clip, Diagnostics, Reinforce, Surrogate
from mmrl.objective.terms import Replays, Term
from mmrl.objective.views import Dvrp, Papo
from mmrl.objective.weight import NoiseWeight
from mmrl.rollout import Chunk, StepOutput


def no_divergence(p: StepOutput, q: StepOutput, norm: str) -> Tensor:
    raise AssertionError("not asked for")


def example(n: int = 4, s: int = 3) -> tuple[Tensor, Tensor, Tensor, UnitBatch]:
    """Log-probs, reference log-probs, mask and batch of one chunk."""
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(n, s, generator=generator)
    log_prob = old + 0.3 * torch.randn(n, s, generator=generator)
    reference = old + 0.3 * torch.randn(n, s, generator=generator)
    mask = torch.rand(n, s, generator=generator) < 0.7
    advantage = torch.randn(n, 1, generator=generator).expand(n, s)
    batch = UnitBatch(old, advantage, weights(mask, "token_mean", count(mask)), torch.ones(n, s))
    return log_prob, reference, mask, batch


def rows_of(batch: UnitBatch, rows: slice) -> UnitBatch:
    return UnitBatch(batch.old_log_prob[rows], batch.advantage[rows], batch.weight[rows], batch.step_weight[rows])


def slope(objective: Objective, log_prob: Tensor, batch: UnitBatch, others: Replays) -> tuple[float, Tensor]:
    leaf = log_prob.clone().requires_grad_()
    loss, _ = objective.loss(StepOutput(leaf), batch, others, no_divergence)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return float(loss.detach()), gradient


def test_names_in_a_config() -> None:
    assert build("surrogate", {"name": "clip", "high": 0.28}) == Clip(low=0.2, high=0.28)
    assert build("surrogate", {"name": "reinforce"}) == Reinforce()
    assert build("term", {"name": "kl", "coef": 0.1}) == KL(coef=0.1)
    for options in ({"coef": 0.1, "estimator": "k2", "norm": "g2"}, {}, {"coef": -1}):
        with pytest.raises(ValidationError):
            build("term", {"name": "kl", **options})
    with pytest.raises(ValidationError, match=r"above 1 \+ high"):
        Clip(high=2.5, dual=3)


def test_parts_must_fit() -> None:
    with pytest.raises(UserError, match="needs max_steps"):
        Objective(DrAdvantage(), aggregate="seq_mean_token_sum_norm")
    with pytest.raises(ValueError, match="needs max_steps"):
        weights(torch.ones(1, 1, dtype=torch.bool), "seq_mean_token_sum_norm", Counts(1, 1))
    with pytest.raises(ValueError, match="unknown aggregation"):
        weights(torch.ones(1, 1, dtype=torch.bool), "mean", Counts(1, 1))  # type: ignore[arg-type]


def test_advantages_are_shaped_and_samples_selected() -> None:
    objective = Objective(
        GroupAdvantage(scale="none"), shaping=(Clamp(max=1), Clamp(max=0.5)), selection=BestOfN(keep=2)
    )
    scored = Scored(np.array([0.0, 10, 5, 5]), np.zeros(4, dtype=np.int64))
    advantage = objective.advantages(scored)
    assert advantage.tolist() == [-0.5, 0.5, 0, 0]
    assert objective.selected(advantage, scored, 0).tolist() == [True, True, False, False]
    assert objective.selection_size == 2 and Objective(DrAdvantage()).selection_size is None


def test_train_mask_is_drawn_planned_chosen_and_kept() -> None:
    objective = Objective(DrAdvantage(), select=RandomSteps(fraction=0.5, among=4))
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1, 0] = False
    planned = objective.plan_steps(8, 0, 0)
    train = objective.train_mask(mask, planned, [1, 2, 3], torch.tensor([True, True, False]))
    assert train.sum(dim=1).tolist() == [2, 1, 0] and not train[:, 4:].any() and not train[1, 0]


def test_clip_and_kl_add_up_with_their_weights() -> None:
    """Step weights multiply the policy loss only; the coefficient multiplies the term only."""
    log_prob, reference, mask, batch = example()
    batch = replace(batch, step_weight=torch.full_like(log_prob, 2.0))
    others = {REFERENCE: StepOutput(reference)}
    base, base_slope = slope(Objective(DrAdvantage()), log_prob, batch, {})
    total, total_slope = slope(Objective(DrAdvantage(), terms=(KL(coef=0.5),)), log_prob, batch, others)
    leaf = log_prob.clone().requires_grad_()
    kl = (estimate(leaf, reference, "k3") * mask).sum() / mask.sum()
    (kl_slope,) = torch.autograd.grad(kl, leaf)
    assert total == pytest.approx(base + 0.5 * float(kl.detach()), rel=1e-5)
    torch.testing.assert_close(total_slope, base_slope + 0.5 * kl_slope)
    single, single_slope = slope(
        Objective(DrAdvantage()), log_prob, replace(batch, step_weight=torch.ones_like(log_prob)), {}
    )
    assert base == pytest.approx(2 * single, rel=1e-6)
    torch.testing.assert_close(base_slope, 2 * single_slope)


def test_two_equal_terms_count_twice_and_are_both_logged() -> None:
    log_prob, reference, _, batch = example()
    others = {REFERENCE: StepOutput(reference)}
    two, two_slope = slope(Objective(DrAdvantage(), terms=(KL(coef=0.5), KL(coef=0.5))), log_prob, batch, others)
    one, one_slope = slope(Objective(DrAdvantage(), terms=(KL(coef=1.0),)), log_prob, batch, others)
    assert two == pytest.approx(one, rel=1e-6)
    torch.testing.assert_close(two_slope, one_slope)
    objective = Objective(DrAdvantage(), terms=(KL(coef=0.5), KL(coef=0.5, estimator="k2")))
    _, metrics = objective.loss(StepOutput(log_prob), batch, others, no_divergence)
    assert {"kl", "kl_2"} <= set(metrics) and metrics["kl"] != metrics["kl_2"]
    assert objective.needs == (REFERENCE,)


def test_exact_kl_asks_the_policy() -> None:
    asked: list[Any] = []

    def divergence(p: StepOutput, q: StepOutput, norm: str) -> Tensor:
        asked.append((q.dist, norm))
        return (p.dist - q.dist) ** 2

    _, _, _, batch = example()
    mean = torch.zeros(4, 3, requires_grad=True)
    objective = Objective(DrAdvantage(), terms=(KL(coef=1, estimator="exact", norm="v"),))
    others = {REFERENCE: StepOutput(torch.zeros(4, 3), dist=torch.ones(4, 3))}
    loss, metrics = objective.loss(StepOutput(batch.old_log_prob, dist=mean), batch, others, divergence)
    loss.backward()
    assert asked == [(others[REFERENCE].dist, "v")]
    assert finish(metrics)["kl"] == pytest.approx(1)
    assert mean.grad is not None
    torch.testing.assert_close(mean.grad, -2 * batch.weight)


def test_coefficient_zero_is_the_base_method_and_replays_nothing() -> None:
    log_prob, _, _, batch = example()
    base, off = Objective(DrAdvantage()), Objective(DrAdvantage(), terms=(KL(coef=0, estimator="exact"),))
    assert off.needs == () and KL(coef=0.1).needs == (REFERENCE,)
    (a, x), (b, y) = slope(base, log_prob, batch, {}), slope(off, log_prob, batch, {})
    assert a == b and torch.equal(x, y)
    assert not off.has_signal(np.zeros(2), {"original": torch.tensor([2, 2])})


def test_untrained_steps_change_nothing_even_when_not_finite() -> None:
    log_prob, reference, mask, batch = example()
    objective = Objective(DrAdvantage(), terms=(KL(coef=0.3), KL(coef=0.1, estimator="k2")))
    clean = slope(objective, log_prob, batch, {REFERENCE: StepOutput(reference)})
    for junk in (float("nan"), float("-inf"), 50.0):
        dirty = slope(
            objective,
            log_prob.masked_fill(~mask, junk),
            replace(batch, old_log_prob=batch.old_log_prob.masked_fill(~mask, junk)),
            {REFERENCE: StepOutput(reference.masked_fill(~mask, junk))},
        )
        assert dirty[0] == clean[0] and torch.equal(dirty[1], clean[1])
    assert not clean[1][~mask].any()


def test_nothing_to_train_gives_zero_with_a_gradient() -> None:
    log_prob, _, _, batch = example()
    loss, gradient = slope(Objective(DrAdvantage()), log_prob, replace(batch, weight=torch.zeros(4, 3)), {})
    assert loss == 0 and not gradient.any()
    empty = rows_of(batch, slice(0, 0))
    assert slope(Objective(DrAdvantage()), torch.zeros(0, 3), empty, {})[0] == 0


@pytest.mark.parametrize("where", ["policy", "behaviour policy", "reference"])
def test_non_finite_log_prob_names_sample_and_step(where: str) -> None:
    old = -torch.rand(8, 5)
    train = torch.ones(8, 5, dtype=torch.bool)
    chunk = Chunk(rows=torch.tensor([6, 2]), steps=torch.tensor([[1, 3], [0, 4]]))
    behaviour = old.clone()
    if where == "behaviour policy":
        behaviour[2, 4] = float("nan")
    batch = UnitBatch.of(chunk, behaviour, torch.ones(8), weights(train, "token_mean", count(train)), torch.ones(8, 5))
    bad = chunk.take(old)
    bad[1, 1] = float("-inf")
    objective = Objective(DrAdvantage(), terms=(KL(coef=1),))
    with pytest.raises(RunError, match=rf"of the {where} .*is .* at sample 2, step 4 \(1 of 4"):
        objective.loss(
            StepOutput(bad if where == "policy" else chunk.take(old)),
            batch,
            {REFERENCE: StepOutput(bad if where == "reference" else chunk.take(old))},
            no_divergence,
        )
    bare = replace(batch, chunk=None)
    with pytest.raises(RunError, match="row 1, step 1"):
        Objective(DrAdvantage()).loss(StepOutput(bad), replace(bare, old_log_prob=chunk.take(old)), {}, no_divergence)


def test_unit_batch_of_a_chunk() -> None:
    values = torch.arange(12.0).reshape(4, 3)
    chunk = Chunk(rows=torch.tensor([3, 0, 3]), steps=torch.tensor([[2], [1], [0]]))
    batch = UnitBatch.of(chunk, values, torch.arange(4.0).double(), values * 2, values * 3)
    assert batch.old_log_prob.tolist() == [[11], [1], [9]]
    assert batch.advantage.tolist() == [[3], [0], [3]] and batch.advantage.dtype == torch.float32
    assert batch.weight.tolist() == [[22], [2], [18]] and batch.step_weight.tolist() == [[33], [3], [27]]


def test_metrics_are_what_they_say() -> None:
    ratio = torch.tensor([[1.5, 0.4, 1.1], [1.5, 0.4, 4.0]])
    old = torch.zeros(2, 3)
    weight = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]) / 5
    batch = UnitBatch(old, torch.tensor([[1.0], [-1.0]]).expand(2, 3), weight, torch.ones(2, 3))
    loss, metrics = Objective(DrAdvantage()).loss(StepOutput(ratio.log()), batch, {}, no_divergence)
    values = finish(metrics)
    assert values["ratio"] == pytest.approx((1.5 + 0.4 + 1.1 + 1.5 + 0.4) / 5)
    assert values["ratio_deviation"] == pytest.approx(0.6)
    assert values["clip_high"] == pytest.approx(1 / 5) and values["clip_low"] == pytest.approx(1 / 5)
    kept = torch.tensor([1.5, 0.4, 1.1, 1.5, 0.4])
    assert values["approx_kl"] == pytest.approx(float((kept - 1 - kept.log()).mean()), rel=1e-5)
    assert values["loss"] == pytest.approx(float(loss)) == pytest.approx((-1.2 - 0.4 - 1.1 + 1.5 + 0.8) / 5)


def test_metrics_of_chunks_add_up_to_those_of_the_whole() -> None:
    log_prob, reference, _, batch = example(6, 4)
    objective = Objective(DrAdvantage(), Clip(dual=1.5), terms=(KL(coef=0.5),))
    whole = objective.loss(StepOutput(log_prob), batch, {REFERENCE: StepOutput(reference)}, no_divergence)[1]
    parts: dict[str, Any] = {}
    for rows in (slice(0, 1), slice(1, 5), slice(5, 6)):
        part = rows_of(batch, rows)
        others = {REFERENCE: StepOutput(reference[rows])}
        parts = merge(parts, objective.loss(StepOutput(log_prob[rows]), part, others, no_divergence)[1])
    assert finish(parts) == pytest.approx(finish(whole), rel=1e-5)
    assert finish({"a": (0.0, 0.0), "b": ("max", 2.0)}) == {"b": 2.0}


def test_signal() -> None:
    plain, with_kl = Objective(DrAdvantage()), Objective(DrAdvantage(), terms=(KL(coef=0.1),))
    lengths = {"original": torch.tensor([1, 0])}
    assert plain.has_signal(np.array([1.0, 0.0]), lengths)
    assert not plain.has_signal(np.array([0.0, 1.0]), lengths), "the only advantage belongs to an untrained sample"
    assert with_kl.has_signal(np.zeros(2), lengths)
    assert not with_kl.has_signal(np.ones(2), {"original": torch.zeros(2, dtype=torch.int64)})


def test_a_term_has_signal_where_a_trained_sample_is_seen_through_its_view() -> None:
    """Without a picture in the update there is nothing to step for; a KL to the reference still counts every sample."""
    none, one = torch.tensor([0, 0]), torch.tensor([0, 3])
    papo = Objective(DrAdvantage(), terms=(Papo(coef=0.1),))
    for masked, signal in ((none, False), (one, True)):
        lengths = {"original": torch.tensor([4, 3]), "masked": masked}
        assert papo.has_signal(np.zeros(2), lengths) is signal
        assert papo.has_signal(np.array([1.0, 0.0]), lengths)
        both = Objective(DrAdvantage(), terms=(Papo(coef=0.1), KL(coef=0.1)))
        assert both.has_signal(np.zeros(2), lengths)
    views = {"original": one, "masked": none, "perturbed": one}
    assert Objective(DrAdvantage(), terms=(Dvrp(),)).has_signal(np.zeros(2), views)
    assert not Objective(DrAdvantage(), terms=(Dvrp(perturbed=0),)).has_signal(np.zeros(2), views)


@pytest.mark.parametrize("surrogate", [Gspo(), Gspo(level="token"), Gmpo()])
def test_a_ratio_of_a_sample_is_refused_where_lengths_would_weigh_it(surrogate: Surrogate) -> None:
    with pytest.raises(UserError, match=r"token_mean .*; use seq_mean_token_mean or seq_mean_token_sum"):
        Objective(DrAdvantage(), surrogate)
    with pytest.raises(UserError, match=r"seq_mean_token_sum_norm .*; use"):
        Objective(DrAdvantage(), surrogate, aggregate="seq_mean_token_sum_norm", max_steps=8)
    for mode in PER_SAMPLE:
        Objective(DrAdvantage(), surrogate, aggregate=mode)


def test_step_weights_come_from_the_weight_part() -> None:
    train = torch.tensor([[True, True]])
    std = torch.tensor([[3.0, 1.0]])
    assert Objective(DrAdvantage()).step_weights(train, None).tolist() == [[1, 1]]
    assert Objective(DrAdvantage(), weight=NoiseWeight()).step_weights(train, std).tolist() == [[1.5, 0.5]]


def test_surrogates_say_that_they_need_a_density() -> None:
    assert Objective(DrAdvantage()).needs_log_prob and Reinforce.needs_log_prob

    class Regress(Surrogate):
        """Reads no log-prob."""

        needs_log_prob = False

    assert not Objective(DrAdvantage(), Regress()).needs_log_prob


def test_what_a_surrogate_returns_at_untrained_steps_is_dropped() -> None:
    class Careless(Surrogate):
        """Knows no mask."""

        def __call__(
            self, log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, mask: Tensor
        ) -> tuple[Tensor, Diagnostics]:
            junk = torch.where(mask, 1.0, 7.0)
            return log_prob + junk, Diagnostics(junk.log(), ~mask, ~mask, ~mask)

    log_prob, _, mask, batch = example()
    loss, metrics = Objective(DrAdvantage(), Careless()).loss(StepOutput(log_prob), batch, {}, no_divergence)
    assert float(loss) == pytest.approx(float(log_prob[mask].mean()) + 1, rel=1e-5)
    values = finish(metrics)
    assert values["ratio"] == 1 and values["ratio_deviation"] == 0
    assert values["clip_low"] == values["clip_high"] == values["clip_dual"] == 0


def test_a_term_of_a_user() -> None:
    class Bonus(Term):
        """Entropy bonus from the sampled log-prob."""

        def value(self, out: StepOutput, batch: UnitBatch, others: Replays, divergence: Any) -> Tensor:
            return out.log_prob

    log_prob, _, mask, batch = example()
    objective = Objective(DrAdvantage(), Reinforce(), terms=(Bonus(coef=0.1),))
    _, gradient = slope(objective, log_prob, batch, {})
    torch.testing.assert_close(gradient, (0.1 - batch.advantage) * mask / mask.sum())
    _, metrics = objective.loss(StepOutput(log_prob), batch, {}, no_divergence)
    assert finish(metrics)["bonus"] == pytest.approx(float((log_prob * mask).sum() / mask.sum()))
