"""Rollout plans on the tiny networks of both kinds: parity, groups cut between processes, and sampling that differs from rollouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_generative_policy import draws_of, every, policy_of, worst_ratio

from mmrl.generative.noise import Noise
from mmrl.generative.policy import DenoisingPolicy
from mmrl.rollout import Rollout

STEPS = 6
SHARED: dict[str, Any] = {"start_noise": "shared"}
SELECTED: dict[str, Any] = {**SHARED, "stochastic": "selected"}
PLANS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "shared start": (SHARED, [0, 1, 2, 3]),
    "window": (SELECTED, [2, 3]),
    "fan-out": ({**SELECTED, "fan_out": {"at": [1, 3]}}, []),
    "branch": ({**SHARED, "branch": {"at": [0, 3]}, "decode": "clean"}, list(range(STEPS - 1))),
    "Branch-Mix": ({**SELECTED, "branch": {"at": [0, 3]}}, [1]),
}
FLOW_ONLY: dict[str, tuple[dict[str, Any], list[int]]] = {
    "Flash": ({**SELECTED, "flash": {"ratio": 0.5}}, [1, 2]),
    "second order": ({**SELECTED, "solver": "dpm2m"}, [1, 2]),
    "truncated": ({"sampler": {"kind": "flow_sde", "truncate": 0.2}}, [0, 1, 2]),
}
CASES = [("sd3", name) for name in PLANS | FLOW_ONLY] + [("sd15", name) for name in PLANS]


def planned(policy: DenoisingPolicy, name: str, **options: Any) -> tuple[Any, torch.Tensor]:
    given, chosen = (PLANS | FLOW_ONLY)[name]
    plan = policy.plan_type(num_steps=STEPS, **{**given, **options})
    steps = torch.zeros(STEPS, dtype=torch.bool)
    steps[chosen] = True
    return plan, steps


def edges(rollout: Rollout) -> int:
    return len({(k, int(rollout.payload.at[row, k + 1])) for row, k in rollout.mask.nonzero().tolist()})


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_the_first_ratio_is_one_and_passes_are_counted(kind: str, name: str) -> None:
    policy = policy_of(kind)
    plan, steps = planned(policy, name, guidance_scale=2.0, micro_batch=5)
    rollout = policy.rollout(draws_of(2, 4), plan, steps)
    assert rollout.mask.any(0).equal(policy.stochastic_steps(plan, steps))
    assert worst_ratio(policy, rollout) < 1e-5
    trained = int(rollout.mask[0].sum())
    assert policy.passes(plan, steps, trained, 4, 1) == {"rollout": rollout.stats["nfe"], "update": edges(rollout) / 4}


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_group_cut_between_processes_is_the_same_group(kind: str, name: str) -> None:
    policy = policy_of(kind)
    plan, steps = planned(policy, name)
    draws = draws_of(2, 4)
    whole = policy.rollout(draws, plan, steps)
    parts = [policy.rollout(part, plan, steps) for part in (draws[:3], draws[3:])]
    for read in (
        lambda one: one.payload.final,
        lambda one: one.log_prob,
        lambda one: one.step_std,
    ):
        torch.testing.assert_close(torch.cat([read(part) for part in parts]), read(whole), rtol=1e-4, atol=1e-5)
    assert torch.cat([part.mask for part in parts]).equal(whole.mask)
    assert (whole.tree is None) == (plan.branch is None) and (whole.part is None) == (plan.fan_out is None)
    if whole.tree is not None:
        assert torch.cat([part.tree.node for part in parts]).equal(whole.tree.node)  # type: ignore[union-attr]
        assert len(whole.tree.node[:4, -1].unique()) == 4 and len(whole.tree.node[:, 0].unique()) == 4
    if whole.part is not None:
        assert torch.cat([part.part for part in parts]).tolist() == whole.part.tolist() == [0, 1] * 4  # type: ignore[misc]


def test_a_fan_trains_each_sample_at_its_own_step_whatever_is_selected() -> None:
    policy = policy_of("sd3")
    plan, steps = planned(policy, "fan-out")
    rollout = policy.rollout(draws_of(1, 4), plan, steps)
    assert [row.nonzero().flatten().tolist() for row in rollout.mask] == [[1], [3], [1], [3]]
    first = [rollout.payload.latents[rollout.payload.at[row, 1]] for row in (0, 2)]
    assert torch.equal(*first) and rollout.payload.at[0, 1] == rollout.payload.at[2, 1]


def test_two_draws_of_one_seed_are_one_sample() -> None:
    policy = policy_of("sd3")
    plan = policy.plan_type(num_steps=3)
    draws = draws_of(1, 2)
    twice = policy.rollout([draws[0], draws[1], draws[0]], plan, every(plan))
    assert torch.equal(twice.payload.final[0], twice.payload.final[2]) and twice.stats["nfe"] == 2
    assert torch.equal(twice.log_prob[0], twice.log_prob[2]) and not torch.equal(twice.log_prob[0], twice.log_prob[1])
    alone = policy.rollout(draws[:1], plan, every(plan))
    torch.testing.assert_close(alone.payload.final[0], twice.payload.final[0], rtol=1e-4, atol=1e-5)


def test_no_step_has_a_larger_std_than_where_it_is_truncated() -> None:
    policy = policy_of("sd3")
    free, steps = planned(policy, "truncated", sampler={"kind": "flow_sde"})
    cut = free.model_copy(update={"sampler": free.sampler.model_copy(update={"truncate": 0.2})})
    stds = [policy.rollout(draws_of(1, 2), plan, steps).step_std for plan in (free, cut)]
    assert stds[0] is not None and stds[1] is not None and (stds[0] > 0.2).any()
    torch.testing.assert_close(stds[1], stds[0].clamp_max(0.2))


def test_evaluation_has_its_own_steps_size_guidance_and_solver() -> None:
    policy = policy_of("sd3")
    plan, steps = planned(policy, "window")
    policy.rollout(draws_of(1, 2), plan, steps)
    sampling = policy.sampling_type(num_steps=9, height=16, width=24, guidance_scale=3.0, solver="dpm2m")  # type: ignore[call-arg]
    rows: list[int] = []
    predict = policy.adapter.predict
    policy.adapter.predict = lambda x, *rest: (rows.append(len(x)), predict(x, *rest))[1]  # type: ignore[method-assign]
    found = policy.generate(draws_of(1, 2), sampling)
    assert found[0].images[0].shape == (16, 24, 3) and sum(rows) == 2 * 2 * 9


def test_second_order_steps_come_to_the_ode_faster() -> None:
    """On data of a normal distribution with std 0.5, whose clean prediction and ODE are known."""
    policy = policy_of("sd3")

    def predict(x: torch.Tensor, timestep: torch.Tensor, cond: Any) -> torch.Tensor:
        sigma = (timestep / 1000).reshape(-1, 1, 1, 1)
        return x * 0.25 * (1 - sigma) / (0.25 * (1 - sigma) ** 2 + sigma**2)

    policy.adapter.predict = predict  # type: ignore[method-assign]
    start = Noise([draw.seed for draw in draws_of(1, 2)], (3, 24, 24), torch.device("cpu")).draw()

    def error(steps: int, solver: str) -> float:
        plan = policy.plan_type(num_steps=steps, solver=solver, sampler={"kind": "ode"}, shift=3.0)  # type: ignore[call-arg]
        final = policy.rollout(draws_of(1, 2), plan, every(plan)).payload.final
        return float((final - 0.5 * start).norm() / start.norm())

    for solver, order in (("euler", 1), ("dpm2m", 2)):
        coarse, fine = error(20, solver), error(40, solver)
        assert 2 ** (order - 0.4) < coarse / fine < 2 ** (order + 0.6), (solver, coarse, fine)
    assert error(20, "dpm2m") < error(20, "euler") / 3
