"""The slow copy of the trained weights: how it follows them, what runs with it, and that a checkpoint keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from toy_policy import ToyPolicy, gradients, stage, work

from mmrl.advantage.care import GrpoCare
from mmrl.advantage.group import DrAdvantage
from mmrl.errors import UserError
from mmrl.generative.families.tiny import TinySD3
from mmrl.generative.plan import FlowPlan
from mmrl.generative.train import TrainSpec
from mmrl.meter import Meter
from mmrl.objective.objective import Objective
from mmrl.rollout import Draw, Prompt, Rollout
from mmrl.vlm.models import TinyQwen3VL
from mmrl.vlm.plan import VlmPlan
from mmrl.vlm.train import VlmTrainSpec


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def writer(mode: Any) -> tuple[Any, Rollout]:
    policy = TinyQwen3VL()
    policy.load("cpu")
    policy.prepare(VlmTrainSpec(mode=mode), False)
    draws = [Draw(Prompt("p", "Answer yes or no."), 0, k, k, 7) for k in range(3)]
    return policy, policy.rollout(draws, VlmPlan(max_new_tokens=6), torch.ones(6, dtype=torch.bool))


def painter(mode: Any) -> tuple[Any, Rollout]:
    policy = TinySD3(layers=2, heads=2, head_dim=16)
    policy.load(torch.device("cpu"))
    policy.prepare(TrainSpec(mode=mode), False)
    draws = [Draw(Prompt("p", "a red square"), 0, k, k, 7) for k in range(2)]
    return policy, policy.rollout(draws, FlowPlan(num_steps=3), torch.ones(3, dtype=torch.bool))


def move(policy: Any, seed: int, size: float = 0.02) -> None:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter += size * torch.randn(parameter.shape, generator=g)


def replayed(policy: Any, rollout: Rollout, model: str) -> torch.Tensor:
    parts = policy.chunks(rollout, rollout.mask, 8)
    return torch.cat([policy.replay(rollout, chunk, model=model).log_prob.flatten() for chunk in parts])


@pytest.mark.parametrize("make", [writer, painter])
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_the_slow_copy_is_replayed_and_leaves_the_weights_alone(make: Any, mode: str) -> None:
    policy, rollout = make(mode)
    with pytest.raises(UserError, match="no slow copy"):
        replayed(policy, rollout, "ema")
    move(policy, 0)
    policy.keep_slow()
    start = replayed(policy, rollout, "policy").detach()
    assert torch.equal(replayed(policy, rollout, "ema"), start)
    move(policy, 1)
    weights = {name: value.detach().clone() for name, value in policy.trainable().items()}
    now = replayed(policy, rollout, "policy")
    slow = replayed(policy, rollout, "ema")
    assert torch.equal(slow, start) and not slow.requires_grad and (now - slow).abs().max() > 1e-4
    assert all(torch.equal(value, weights[name]) for name, value in policy.trainable().items())
    now.sum().backward()  # the graph made before the swap still belongs to the weights
    assert any(value.grad is not None and value.grad.any() for value in policy.trainable().values())


def test_it_follows_as_the_formula_says_and_a_checkpoint_keeps_it() -> None:
    policy, rollout = writer("full")
    policy.keep_slow()
    name = next(iter(policy.trainable()))
    naive = policy.trainable()[name].detach().double().flatten()[:5].tolist()
    for step in range(4):
        move(policy, step)
        policy.follow(0.9)
        now = policy.trainable()[name].detach().double().flatten()[:5].tolist()
        naive = [0.9 * a + 0.1 * b for a, b in zip(naive, now, strict=True)]
    assert policy.weights.slow[name].flatten()[:5].tolist() == pytest.approx(naive, abs=1e-6)
    state = {key: value.clone() for key, value in policy.frozen_state().items()}
    assert len([key for key in state if key.startswith("slow.")]) == len(policy.trainable())

    other, _ = writer("full")
    other.keep_slow()
    other.load_frozen_state(state)
    assert all(torch.equal(value, policy.weights.slow[key]) for key, value in other.weights.slow.items())
    assert torch.equal(replayed(other, rollout, "ema"), replayed(policy, rollout, "ema"))
    plain, _ = writer("full")
    plain.load_frozen_state(state)
    assert not plain.weights.slow and not plain.frozen_state(), "a run that only samples keeps none"
    other.prepare(VlmTrainSpec(), False)
    assert not other.weights.slow, "the next stage starts without one"


def test_it_moves_every_so_many_updates_whatever_the_steps_and_after_resuming() -> None:
    """Updates without signal count too, as they do for the schedule of the rate."""
    objective = Objective(DrAdvantage(), shaping=(GrpoCare(decay=0.8, every=3),))

    def followed(first: int, last: int) -> list[list[float]]:
        policy = ToyPolicy()
        own = work(policy, stage(objective, updates_per_rollout=2, epochs=2))
        own.collector.draws.index = first
        found = []
        for step in range(first, last):
            policy.followed = []
            assert len(gradients(policy, own.updates(step, Meter()))) == 4
            found.append(policy.followed)
        return found

    straight = followed(0, 6)
    assert [len(one) for one in straight] == [1, 1, 2] * 2 and straight[0] == [0.8]
    assert followed(0, 2) + followed(2, 6) == straight


def test_without_a_shaping_that_wants_one_there_is_none() -> None:
    policy = ToyPolicy()
    gradients(policy, work(policy, stage(Objective(DrAdvantage()))).updates(0, Meter()))
    assert not hasattr(policy, "followed")
