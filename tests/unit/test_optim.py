"""One optimizer step: gradient sums, the guard, clipping, schedules, the moving average, and their state."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from mmrl.config.schema import EMASection, OptimizerSection
from mmrl.distributed import Group
from mmrl.ema import EMA, ema_decay
from mmrl.errors import RunError, UserError
from mmrl.optim import Optimization, lr_factor


def made(total: int = 10, ema: EMASection | None = None, **options: object) -> tuple[torch.nn.Parameter, Optimization]:
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    section = OptimizerSection.model_validate({"lr": 0.1, **options})
    return parameter, Optimization({"w": parameter}, section, ema, total, Group("cpu"))


def test_losses_of_one_update_add_up() -> None:
    whole, first = made(max_grad_norm=None)
    parts, second = made(max_grad_norm=None)
    one = first.apply([(whole**2).sum()])
    two = second.apply((part**2).sum() for part in (parts[:1], parts[1:]))
    assert one["grad_norm"] == pytest.approx(two["grad_norm"]) == pytest.approx(math.hypot(2.0, 4.0))
    assert torch.equal(whole, parts)


def test_adamw_step_matches_the_formula() -> None:
    parameter, optimization = made(eps=1e-5, weight_decay=0.01, betas=(0.9, 0.99), max_grad_norm=1.0)
    before, gradient = parameter.detach().double(), 2 * parameter.detach().double()
    gradient = gradient / gradient.norm()
    optimization.apply([(parameter**2).sum()])
    expected = before * (1 - 0.1 * 0.01) - 0.1 * gradient / (gradient.abs() + 1e-5)
    torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_gradient_skips_the_step_and_past_the_budget_stops(value: float) -> None:
    parameter, optimization = made(max_skipped=1)
    before = parameter.detach().clone()
    result = optimization.apply([(parameter * value).sum()])
    assert result["skipped"] == 1.0 and "grad_norm" not in result
    assert torch.equal(parameter, before) and optimization.skipped == 1
    with pytest.raises(RunError, match="2 optimizer steps had a non-finite gradient"):
        optimization.apply([(parameter * value).sum()])


def test_a_user_error_in_a_loss_is_raised_as_it_is() -> None:
    parameter, optimization = made()

    def losses():
        yield parameter.sum()
        raise UserError("bad picture")

    with pytest.raises(UserError, match="bad picture"):
        optimization.apply(losses())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", lambda progress: 1.0),
        ("linear", lambda progress: 1.0 - progress),
        ("cosine", lambda progress: 0.5 * (1 + math.cos(math.pi * progress))),
    ],
)
def test_schedules(schedule: str, expected: Callable[[float], float]) -> None:
    section = OptimizerSection.model_validate({"lr": 1.0, "schedule": schedule, "warmup_steps": 4})
    assert [lr_factor(section, step, 20) for step in range(4)] == [0.0, 0.25, 0.5, 0.75]
    for step in range(4, 21):
        assert lr_factor(section, step, 20) == pytest.approx(expected((step - 4) / 16))


def test_an_update_without_signal_moves_the_schedule_on() -> None:
    parameter, optimization = made(total=4, schedule="linear")
    optimization.apply([parameter.sum()])
    optimization.pass_over()
    assert optimization.apply([parameter.sum()])["lr"] == pytest.approx(0.1 * 0.5)


def test_ema_matches_a_naive_loop_and_starts_at_the_first_weights() -> None:
    parameter, optimization = made(ema=EMASection(decay=0.7, every=2))
    shadow = parameter.detach().double().clone()
    for step in range(1, 8):
        optimization.apply([(parameter**2).sum()])
        if step % 2 == 0:
            decay = min((1 + step) / (10 + step), 0.7)
            shadow = decay * shadow + (1 - decay) * parameter.detach().double()
    own = parameter.detach().clone()
    with optimization.averaged():
        torch.testing.assert_close(parameter.detach().double(), shadow, rtol=1e-5, atol=1e-6)
        assert not torch.equal(parameter, own)
    assert torch.equal(parameter, own)
    optimization.hand_on()
    torch.testing.assert_close(parameter.detach().double(), shadow, rtol=1e-5, atol=1e-6)


def test_ema_decay_rises_to_its_limit() -> None:
    assert [round(ema_decay(step, 0.9), 2) for step in (8, 16, 40, 72, 100)] == [0.5, 0.65, 0.82, 0.89, 0.9]


def test_ema_restores_the_weights_when_something_fails_inside() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    ema = EMA([parameter], 0.9)
    with torch.no_grad():
        parameter.add_(1)
    with pytest.raises(ValueError, match="inside"), ema.swapped_in([parameter]):
        assert torch.equal(parameter.detach(), torch.ones(2))
        raise ValueError("inside")
    assert torch.equal(parameter.detach(), torch.full((2,), 2.0))


def test_state_goes_on_bit_identically() -> None:
    options = {"ema": EMASection(decay=0.9), "schedule": "cosine", "total": 8}
    whole, straight = made(**options)
    for _ in range(6):
        straight.apply([(whole**3).sum()])
    half, first = made(**options)
    for _ in range(3):
        first.apply([(half**3).sum()])
    tensors, numbers = first.state()
    again, second = made(**options)
    with torch.no_grad():
        again.copy_(half)
    second.load(
        {name: {key: value.clone() for key, value in group.items()} for name, group in tensors.items()}, numbers
    )
    for _ in range(3):
        second.apply([(again**3).sum()])
    assert torch.equal(whole, again)
    assert torch.equal(straight.state()[0]["ema"]["w"], second.state()[0]["ema"]["w"])
