"""Step selectors and step weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from mmrl.components import build
from mmrl.errors import UserError
from mmrl.objective.steps import AllSteps, FractionSteps, RandomSteps, StepSelector
from mmrl.objective.weight import NoiseWeight, UniformWeight, noise_sums, relative_noise
from mmrl.objective.window import WindowSteps


def steps(selector: StepSelector, num_steps: int, iteration: int = 0, seed: int = 0) -> list[int]:
    return selector.before_rollout(num_steps, iteration, seed).nonzero()[:, 0].tolist()


def test_names_in_a_config() -> None:
    assert build("steps", {"name": "all"}) == AllSteps()
    assert build("steps", {"name": "fraction"}) == FractionSteps(fraction=0.99)
    assert build("steps", {"name": "random", "shared": True}) == RandomSteps(shared=True)
    assert build("steps", {"name": "window", "size": 2}) == WindowSteps(size=2)
    assert build("weight", {"name": "uniform"}) == UniformWeight()
    assert build("weight", {"name": "noise"}) == NoiseWeight()


def test_all_plans_and_trains_everything() -> None:
    mask = torch.rand(3, 5) < 0.5
    assert steps(AllSteps(), 5) == [0, 1, 2, 3, 4]
    assert torch.equal(AllSteps().after_rollout(mask, [1, 2, 3]), mask)


def test_fraction_counts_as_flow_grpo_does() -> None:
    assert steps(FractionSteps(fraction=0.99), 10) == list(range(9))
    assert len(steps(FractionSteps(fraction=0.29), 100)) == 29
    with pytest.raises(ValueError, match=r"use 0\.25 or more"):
        FractionSteps(fraction=0.2).validate_for(4)


def test_random_draws_for_each_sample_as_dancegrpo_does() -> None:
    selector = RandomSteps(fraction=0.6)
    plan = selector.before_rollout(16, 0, 0)
    assert plan.tolist() == [True] * 15 + [False]
    mask = plan.expand(64, 16)
    kept = selector.after_rollout(mask, range(64))
    assert kept.sum(dim=1).tolist() == [9] * 64 and not kept[:, 15].any()
    assert len({tuple(row) for row in kept.tolist()}) > 50
    assert kept[:, :15].any(dim=0).all()


def test_random_depends_on_the_seed_of_the_sample_alone() -> None:
    selector, mask = RandomSteps(), torch.ones(4, 10, dtype=torch.bool)
    together = selector.after_rollout(mask, [11, 12, 13, 14])
    apart = torch.cat([selector.after_rollout(mask[:1], [seed]) for seed in (13, 11)])
    assert torch.equal(together[[2, 0]], apart)


def test_random_takes_its_share_of_a_ragged_row_and_never_nothing() -> None:
    mask = torch.arange(12)[None] < torch.tensor([[12], [5], [1], [0]])
    kept = RandomSteps(fraction=0.6).after_rollout(mask, range(4))
    assert kept.sum(dim=1).tolist() == [7, 3, 1, 0] and not (kept & ~mask).any()


def test_random_shared_is_one_draw_per_iteration() -> None:
    selector = RandomSteps(fraction=0.5, shared=True, among=6)
    plans = [steps(selector, 10, iteration, seed=3) for iteration in range(30)]
    assert plans == [steps(selector, 10, iteration, seed=3) for iteration in range(30)]
    assert all(len(plan) == 3 and max(plan) < 6 for plan in plans)
    assert len({tuple(plan) for plan in plans}) > 5 and plans[0] != steps(selector, 10, 0, seed=4)
    assert len(steps(selector, 10, 0, seed=-1)) == 3
    mask = torch.rand(3, 10) < 0.5
    assert torch.equal(selector.after_rollout(mask, range(3)), mask)
    assert steps(RandomSteps(among=4), 10) == [0, 1, 2, 3]


def test_random_says_what_fits() -> None:
    for options, num_steps, message in [
        ({"among": 9}, 8, "use 1 to 8"),
        ({}, 1, "set among to 1"),
        ({"fraction": 0.1}, 5, "use 0.25 or more"),
    ]:
        selector = RandomSteps(**options)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=message):
            selector.validate_for(num_steps)
        with pytest.raises(ValueError, match=message):
            selector.before_rollout(num_steps, 0, 0)


def test_window_moves_and_starts_again() -> None:
    selector = WindowSteps(size=2, every=2, range=(0, 0))
    expected = [[0, 1], [0, 1], [1, 2], [1, 2], [2, 3], [2, 3], [3], [3], [0, 1]]
    assert [steps(selector, 4, i) for i in range(9)] == expected
    staying = WindowSteps(size=2, every=2, range=(0, 0), roll_back=False)
    assert [steps(staying, 4, i) for i in (7, 8, 1000)] == [[3], [3], [3]]


def test_window_without_overlap_inside_a_range() -> None:
    selector = WindowSteps(size=2, every=1, stride=2, range=(1, 6))
    assert [steps(selector, 10, i) for i in range(4)] == [[1, 2], [3, 4], [5], [1, 2]]


def test_window_random_start_as_flow_grpo_fast() -> None:
    selector = WindowSteps(size=3, schedule="random", range=(0, 5))
    starts = {tuple(steps(selector, 10, i)) for i in range(60)}
    assert starts == {(0, 1, 2), (1, 2, 3), (2, 3, 4)}
    assert {tuple(steps(selector, 10, 0, seed)) for seed in range(60)} == starts


def test_window_needs_no_history() -> None:
    selector = WindowSteps(size=3, schedule="decay", every=7)
    forward = [steps(selector, 12, i) for i in range(200)]
    assert [steps(selector, 12, i) for i in reversed(range(200))] == forward[::-1]


@pytest.mark.parametrize(
    ("options", "num_steps", "message"),
    [
        ({"size": 4}, 5, "steps 0 to 2 of 5; use size 1 to 3"),
        ({"size": 2, "range": (3, 9)}, 8, "not inside 8 steps"),
        ({"size": 1, "range": (4, 4)}, 8, "not inside 8 steps"),
        ({"size": 1}, 2, "not inside 2 steps"),
        ({"size": 1, "range": (-1, 4)}, 8, "not inside 8 steps"),
    ],
)
def test_window_says_what_fits(options: dict[str, Any], num_steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WindowSteps(**options).validate_for(num_steps)
    WindowSteps(size=3).validate_for(5)


def test_window_refuses_options_that_its_schedule_does_not_read() -> None:
    with pytest.raises(ValidationError, match="schedule random does not read every, stride"):
        WindowSteps(schedule="random", every=3, stride=2)
    with pytest.raises(ValidationError, match="does not read decay_rate"):
        WindowSteps(schedule="decay", decay_rate=0.2)


def test_noise_weight_is_relative_to_the_trained_steps() -> None:
    train = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    std = torch.tensor([[3.0, 1.0, 99.0], [2.0, 2.0, 2.0], [1.0, 1.0, 1.0]])
    expected = torch.tensor([[1.5, 0.5, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(NoiseWeight()(train, std), expected)
    nan = std.masked_fill(~train, float("nan"))
    torch.testing.assert_close(relative_noise(train, nan, noise_sums(train, nan)), expected)


def test_noise_weight_tells_steps_apart_where_every_sample_trains_one() -> None:
    train, std = torch.eye(3, dtype=torch.bool)[[0, 0, 1, 2]], torch.tensor([[4.0, 2.0, 0.0]]).expand(4, 3)
    expected = torch.tensor([2.0, 2.0, 1.0, 0.0])
    torch.testing.assert_close(NoiseWeight()(train, std).sum(1), expected)
    halves = [noise_sums(train[rows], std[rows]) for rows in (slice(0, 1), slice(1, 4))]
    split = [NoiseWeight()(train[rows], std[rows], sum(halves)) for rows in (slice(0, 1), slice(1, 4))]  # type: ignore[arg-type]
    torch.testing.assert_close(torch.cat(split).sum(1), expected)  # however the samples are divided over processes


def test_noise_weight_of_ten_flow_sde_steps() -> None:
    """SD3.5, 10 steps, shift 3 (applied twice to the last sigma), noise level 0.7, the first 9 trained."""
    shift = lambda u: 3 * u / (1 + 2 * u)  # noqa: E731
    sigma = torch.tensor([*shift(torch.linspace(1, shift(0.001), 10, dtype=torch.float64)), 0.0])
    capped = torch.where(sigma == 1, sigma[1], sigma)
    std = (0.7 * (sigma / (1 - capped)).sqrt())[:-1] * (sigma[:-1] - sigma[1:]).sqrt()
    weight = NoiseWeight()((torch.arange(10) < 9)[None], std[None])[0]
    expected = torch.tensor([1.58, 1.67, 1.21, 1.00, 0.88, 0.79, 0.72, 0.64, 0.51, 0])
    torch.testing.assert_close(weight, expected, rtol=0, atol=0.005)


def test_noise_weight_needs_a_noise_scale_and_uniform_does_not() -> None:
    train = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(UserError, match="use uniform"):
        NoiseWeight()(train, None)
    assert torch.equal(UniformWeight()(train, None), torch.ones(2, 3))
