"""Finished samples noised again: levels, noise, chunks, replays, and what a stage does with them on a tiny model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_generative_policy import draws_of, nudge, policy_of
from torch import Tensor

from mmrl.advantage.group import DrAdvantage
from mmrl.advantage.types import Following
from mmrl.curriculum.selection import BestOfN
from mmrl.errors import UserError
from mmrl.generative.forward.awm import Awm
from mmrl.generative.forward.base import ForwardSurrogate
from mmrl.generative.forward.crd import Crd
from mmrl.generative.forward.dgpo import Dgpo
from mmrl.generative.forward.dpo import DiffusionDpo
from mmrl.generative.forward.guard import FlowDppo, Guard
from mmrl.generative.forward.nft import Nft
from mmrl.generative.forward.renoise import levels
from mmrl.generative.train import TrainSpec
from mmrl.objective.aggregate import count
from mmrl.objective.batch import UnitBatch
from mmrl.objective.forward import Forward
from mmrl.objective.kl import KL
from mmrl.objective.objective import Objective
from mmrl.objective.steps import AllSteps
from mmrl.objective.surrogate import Clip
from mmrl.objective.weight import NoiseWeight
from mmrl.rollout import Chunk, Rollout

NEAR: dict[str, Any] = {"times": 3, "t_min": 0.1}
ADVANTAGE = torch.tensor([1.0, -0.5, -0.5, 0.2, 1.0, -1.2])


def prepared(surrogate: Any) -> Any:
    """A policy of which model, slow copy and reference differ."""
    policy: Any = policy_of("sd3", TrainSpec(), reference=True)
    nudge(policy, 0.02)
    policy.keep_slow()
    nudge(policy, 0.02)
    return policy


def drawn(policy: Any, forward: Forward, groups: int = 2, members: int = 3, **plan: Any) -> Rollout:
    options = {"num_steps": 4, "sampler": {"kind": "ode"}, **plan}
    chosen = policy.plan_type(**options)
    rollout = policy.rollout(draws_of(groups, members), chosen, torch.zeros(chosen.num_steps, dtype=torch.bool))
    found: Rollout = policy.renoised(rollout, forward)
    return found


def objective_of(surrogate: ForwardSurrogate, coef: float = 0.0) -> Objective:
    terms = (KL(coef=coef, estimator="exact", norm="v"),)
    selection = {"selection": BestOfN(keep=2)} if surrogate.compares_pairs else {}
    return Objective(DrAdvantage(), surrogate, terms=terms, **selection)  # type: ignore[arg-type]


def gradient(policy: Any, objective: Objective, rollout: Rollout, train: Tensor, micro_batch: int) -> dict[str, Tensor]:
    """The gradient of an update of the samples `train (N, T)`, whose old log-probs are a little off those of the policy."""
    for parameter in policy.trainable().values():
        parameter.grad = None
    weight = objective.weights(train, count(train))
    old = torch.linspace(-0.52, -0.48, rollout.log_prob.numel()).reshape(rollout.log_prob.shape)
    for chunk in policy.chunks(rollout, train, micro_batch):
        others = {}
        for view, model in objective.needs:
            with torch.no_grad():
                others[view, model] = policy.replay(rollout, chunk, view, model)
        batch = UnitBatch.of(chunk, old, ADVANTAGE[: len(rollout)], weight, torch.ones_like(weight))
        objective.loss(policy.replay(rollout, chunk), batch, others, policy.divergence)[0].backward()
    return {name: p.grad.clone() for name, p in policy.trainable().items() if p.grad is not None}


def off(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    largest = max(float(one.abs().max()) for one in a.values())
    return max(float((a[name] - b[name]).abs().max()) for name in a) / largest


SURROGATES: list[ForwardSurrogate] = [
    Awm(**NEAR),
    Nft(times=3),
    Dgpo(**NEAR, beta=5.0),
    Dgpo(**NEAR, clip=0.5),
    Crd(**NEAR),
    Crd(**NEAR, loss="cross_entropy", adaptive=True),
    DiffusionDpo(**NEAR, beta=2.0),
]


@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: type(s).__name__)
def test_neither_splitting_nor_untrained_samples_change_the_gradient(surrogate: ForwardSurrogate) -> None:
    policy, objective = prepared(surrogate), objective_of(surrogate, 0.1)
    rollout = drawn(policy, surrogate.forward)
    train = rollout.mask.clone()
    whole = gradient(policy, objective, rollout, train, 18)
    assert off(whole, gradient(policy, objective, rollout, train, 3)) < 1e-4
    train[3:] = False  # the second group
    few = gradient(policy, objective, rollout, train, 18)
    assert off(whole, few) > 1e-3
    rollout.payload.final[3:] += 100.0
    assert off(few, gradient(policy, objective, rollout, train, 18)) == 0.0


@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: type(s).__name__)
def test_a_kl_of_coefficient_zero_changes_nothing(surrogate: ForwardSurrogate) -> None:
    policy = prepared(surrogate)
    rollout = drawn(policy, surrogate.forward)
    base = gradient(
        policy,
        Objective(DrAdvantage(), surrogate, selection=objective_of(surrogate).selection),
        rollout,
        rollout.mask,
        6,
    )
    assert off(base, gradient(policy, objective_of(surrogate), rollout, rollout.mask, 6)) == 0.0
    assert off(base, gradient(policy, objective_of(surrogate, 10.0), rollout, rollout.mask, 6)) > 1e-3


def test_levels_are_functions_of_the_draw() -> None:
    draws, sigmas = draws_of(2, 3), torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])
    for how in ("uniform", "logit_normal", "schedule"):
        own = levels(Forward(4, how, 0.05, 0.95), draws, sigmas)  # type: ignore[arg-type]
        assert torch.equal(own[2:4], levels(Forward(4, how, 0.05, 0.95), draws[2:4], sigmas))  # type: ignore[arg-type]
        shared = levels(Forward(4, how, 0.05, 0.95, shared=True), draws, sigmas)  # type: ignore[arg-type]
        assert len(own.unique(dim=0)) == 6 or how == "schedule"
        assert torch.equal(shared[0], shared[1]) and not torch.equal(shared[0], shared[3])
    assert sorted(own[0].tolist()) == pytest.approx([0.2, 0.5, 0.8, 1.0])  # of the schedule, none twice, never 0


def test_the_levels_are_spread_and_the_shift_moves_them_to_high_noise() -> None:
    draws, none = draws_of(300, 1), torch.zeros(2)
    plain = levels(Forward(4, "uniform", 0.1, 0.9), draws, none)
    edges = torch.linspace(0.1, 0.9, 5)
    assert ((plain >= edges[:-1]) & (plain <= edges[1:])).all()
    assert plain.mean() == pytest.approx(0.5, abs=0.01)
    normal = torch.logit(levels(Forward(4, "logit_normal", 1e-6), draws, none))
    assert (float(normal.mean()), float(normal.std())) == pytest.approx((0.0, 1.0), abs=0.05)
    moved = levels(Forward(4, "uniform", 0.1, 0.9, 3.0), draws, none)
    u = (plain - 0.1) / 0.8
    torch.testing.assert_close(moved, 0.1 + 0.8 * (3 * u / (1 + 2 * u)))


def test_noise_is_shared_where_a_method_compares_samples() -> None:
    policy = prepared(None)
    for shared in (True, False):
        payload = drawn(policy, Forward(2, shared=shared)).payload
        rows, steps = torch.tensor([0, 1, 0, 3]), torch.tensor([0, 0, 1, 0])
        _, target, clean, _ = payload.noised(rows, steps)
        eps = target + clean
        same = [torch.allclose(eps[0], eps[i], atol=1e-5) for i in (1, 2, 3)]
        assert same == [shared, shared, False]
        again = payload.noised(rows[2:], steps[2:])[1]
        torch.testing.assert_close(again, target[2:], rtol=0, atol=0)


def test_the_replay_is_the_weighted_error_of_the_velocity() -> None:
    policy = prepared(None)
    rollout = drawn(policy, Forward(3, t_min=0.1, weight="t2"))
    chunk = Chunk(torch.tensor([4, 1]), torch.tensor([[2], [0]]))
    out = policy.replay(rollout, chunk)
    payload = rollout.payload
    for i, (row, step) in enumerate(((4, 2), (1, 0))):
        t, clean = float(payload.level[row, step]), payload.final[row : row + 1]
        eps = payload.noise([row], [step], policy.device)
        x = (1 - t) * clean + t * eps
        said = policy.predict(x, torch.tensor([t * 1000]), policy.supervised_rows([payload.asks[row]]), 1.0)
        error = (((x - said) / t - (eps - clean)) ** 2).mean().item()
        assert float(out.log_prob[i].detach()) == pytest.approx(-t * t * error, rel=1e-4)


def test_the_reference_alone_may_be_guided() -> None:
    policy = prepared(None)
    plain, guided = (drawn(policy, Forward(2, t_min=0.1, reference_guidance=g)) for g in (None, 4.5))
    chunk = Chunk(torch.tensor([0, 1]), torch.tensor([[0], [1]]))
    for model, same in (("policy", True), ("ema", True), ("reference", False)):
        one, two = (policy.replay(r, chunk, model=model).log_prob for r in (plain, guided))
        assert torch.equal(one, two) == same, model


def test_whole_groups_are_never_parted() -> None:
    policy = prepared(None)
    rollout = drawn(policy, Dgpo(times=2).forward, groups=3, members=2)
    train = rollout.mask.clone()
    train[3, 1] = False
    for micro_batch in (2, 3, 4, 12):
        seen: list[tuple[int, int]] = []
        for chunk in policy.chunks(rollout, train, micro_batch):
            pairs = list(zip(chunk.rows.tolist(), chunk.steps[:, 0].tolist(), strict=True))
            assert len(pairs) <= micro_batch
            for row, step in pairs:
                mates = [r for r in range(6) if r // 2 == row // 2 and bool(train[r, step])]
                assert all((mate, step) in pairs for mate in mates)
            seen += pairs
        assert sorted(seen) == sorted((int(r), int(s)) for r, s in train.nonzero())


def test_the_slow_copy_follows_by_its_schedule() -> None:
    ramp = Nft(times=1).follows
    assert ramp is not None and ramp.every is None
    assert [ramp.at(n) for n in (1, 100, 500, 900)] == pytest.approx([0.001, 0.1, 0.5, 0.5])
    late = Nft(times=1, decay=0.999, rate=0.0075, start=75).follows
    assert late is not None and [late.at(n) for n in (10, 75, 175, 900)] == pytest.approx([0.0, 0.0, 0.75, 0.999])
    assert Following(0.9, 10).at(3) == 0.9
    copied = DiffusionDpo(times=1, old="ema", decay=0.0, rate=None, every=40).follows
    assert copied is not None and (copied.at(40), copied.every) == (0.0, 40)
    assert DiffusionDpo(times=1).follows is None


def test_what_does_not_fit_is_refused() -> None:
    policy: Any = policy_of("sd3")
    plan = policy.plan_type(num_steps=4, sampler={"kind": "ode"})
    policy.check_plan(plan, objective_of(Nft(times=4), 0.1))
    with pytest.raises(ValueError, match="5 levels of a schedule of 4 steps"):
        policy.check_plan(plan, objective_of(Nft(times=5)))
    with pytest.raises(ValueError, match="estimator: exact, norm: v"):
        policy.check_plan(plan, Objective(DrAdvantage(), Nft(times=2), terms=(KL(coef=0.1),)))
    with pytest.raises(ValueError, match="no transition std"):
        policy.check_plan(plan, Objective(DrAdvantage(), Nft(times=2), weight=NoiseWeight()))
    for surrogate in (Clip(), Guard(), FlowDppo()):
        with pytest.raises(ValueError, match="'ode' is deterministic"):
            policy.check_plan(plan, Objective(DrAdvantage(), surrogate, select=AllSteps()))
    with pytest.raises(ValueError, match="'cps' is not that of a Gaussian"):
        policy.check_plan(policy.plan_type(sampler={"kind": "cps"}), Objective(DrAdvantage(), Guard()))
    with pytest.raises(ValueError, match="none would draw any; use sampler"):
        policy.check_plan(policy.plan_type(num_steps=4, stochastic="selected"), objective_of(Nft(times=2)))
    guided = Crd(times=1, reference_guidance=4.5)
    with pytest.raises(ValueError, match="which nothing here reads; add a term kl"):
        policy.check_plan(plan, objective_of(guided))
    policy.check_plan(plan, objective_of(guided, 0.1))
    with pytest.raises(UserError, match="best_of_n, keep: 2"):
        Objective(DrAdvantage(), DiffusionDpo(times=1))
    with pytest.raises(ValueError, match="set old: ema"):
        Dgpo(times=1, decay=0.3)
    with pytest.raises(ValueError, match="also guide the old policy"):
        Crd(times=1, old="reference", reference_guidance=4.5)
    with pytest.raises(ValueError, match="must be below t_max"):
        Awm(times=1, t_min=0.5, t_max=0.4)


def test_the_rollout_keeps_the_means_that_a_guard_reads() -> None:
    policy: Any = policy_of("sd3")
    plan = policy.plan_type(num_steps=3, sampler={"kind": "flow_sde"})
    steps = torch.tensor([True, True, False])
    rollout = policy.rollout(draws_of(2, 2), plan, steps, keep_means=True)
    chunk = Chunk(torch.tensor([0, 3]), torch.tensor([[0], [1]]))
    step = policy.replay(rollout, chunk).dist
    torch.testing.assert_close(step.mean, step.drawn_mean, rtol=1e-5, atol=1e-5)
    nudge(policy)
    moved = policy.replay(rollout, chunk).dist
    torch.testing.assert_close(moved.drawn_mean, step.drawn_mean, rtol=0, atol=0)
    assert not torch.allclose(moved.mean, moved.drawn_mean, atol=1e-3)
    assert policy.replay(policy.rollout(draws_of(2, 2), plan, steps), chunk).dist.drawn_mean is None
