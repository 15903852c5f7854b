"""Scoring while the next part of a step is drawn; failures that end a run; what transforms remember in a run."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from test_rl_work import REFILL, step
from toy_policy import FakeGroup, Ones, SharedMail, ToyPolicy, gradients, stage, work

from mmrl.advantage.group import DrAdvantage
from mmrl.advantage.majority import Majority
from mmrl.components import build
from mmrl.errors import RunError
from mmrl.meter import Meter
from mmrl.objective.objective import Objective
from mmrl.reward import Failed, Use
from mmrl.reward.beside import in_parts
from mmrl.rollout import Draw, Prompt, Sample


def test_parts_hold_whole_groups_in_order() -> None:
    draws = [Draw(Prompt(str(g), ""), g, m, 0, 0) for g in (3, 1, 2, 0, 7) for m in range(2)]
    parts = in_parts(draws, 2)
    assert [draw for part in parts for draw in part] == draws
    assert [[draw.group for draw in part[::2]] for part in parts] == [[3, 1], [2, 0, 7]]
    assert len(in_parts(draws, 9)) == 5 and in_parts(draws, 1) == [draws]
    asked = [Draw(Prompt(f"{g}/checklist/0", ""), 5 + g, m, 0, 0, parent=g) for g in (0, 1) for m in range(2)]
    first, second = in_parts([*draws, *asked], 2)
    assert [draw.group for draw in first] == [3, 3, 1, 1, 6, 6] and [draw.group for draw in second] == [
        2,
        2,
        0,
        0,
        5,
        5,
        7,
        7,
    ]


def test_a_step_that_ends_early_gives_up_what_waits() -> None:
    """Parts that wait are not begun, and rewards are told to stop."""
    began, told = threading.Event(), threading.Event()

    class Waits(Ones):
        calls: ClassVar[int] = 0

        def score(self, samples: Sequence[Sample]) -> list[float]:
            Waits.calls += 1
            began.set()
            assert told.wait(60)
            return super().score(samples)

        def stop(self) -> None:
            told.set()

    class Breaks(ToyPolicy):
        def rollout(self, draws: Sequence[Draw], plan: Any, steps: Any) -> Any:
            if any(draw.group == 2 for draw in draws):
                assert began.wait(60)
                raise KeyboardInterrupt
            return super().rollout(draws, plan, steps)

    policy, own = Breaks(), stage(Objective(DrAdvantage()), rollout_parts=4)
    own.rewards = {"ones": Use(Waits())}  # type: ignore[arg-type]
    doing = work(policy, own)
    with pytest.raises(KeyboardInterrupt):
        list(doing.updates(0, Meter()))
    assert doing.collector.scorer.pool is not None
    doing.collector.scorer.pool.shutdown()
    assert told.is_set() and Waits.calls == 1


@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("options", [{}, {"refill": REFILL}, {"updates_per_rollout": 3, "epochs": 2}])
def test_a_step_in_parts_is_the_step(parts: int, options: dict[str, Any]) -> None:
    objective = Objective(DrAdvantage(), shaping=(Majority(),))
    whole, metrics, policy = step(objective, **options)
    cut, other, drawn = step(objective, rollout_parts=parts, **options)
    assert [draw.seed for draw in drawn.drawn] == [draw.seed for draw in policy.drawn] and len(cut) == len(whole)
    for one, two in zip(whole, cut, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-6, atol=1e-8)
    assert other == pytest.approx(metrics, rel=1e-5, abs=1e-7)


def test_a_part_is_scored_while_the_next_is_drawn() -> None:
    """The reward of the first part waits until the second is being drawn, which without a thread it would for ever."""
    drawing = threading.Event()

    class Patient(Ones):
        calls: ClassVar[int] = 0

        def score(self, samples: Sequence[Sample]) -> list[float]:
            Patient.calls += 1
            assert drawing.wait(60), "the next part was not drawn while this one was scored"
            return super().score(samples)

    class Second(ToyPolicy):
        def rollout(self, draws: Sequence[Draw], plan: Any, steps: Any) -> Any:
            if any(draw.group == 3 for draw in draws):
                drawing.set()
            return super().rollout(draws, plan, steps)

    policy, own = Second(), stage(Objective(DrAdvantage()), rollout_parts=2)
    own.rewards = {"ones": Use(Patient())}  # type: ignore[arg-type]
    meter = Meter()
    (found,) = gradients(policy, work(policy, own).updates(0, meter))
    (plain,), _, _ = step(Objective(DrAdvantage()))
    np.testing.assert_allclose(found, plain, rtol=1e-6, atol=1e-8)
    assert Patient.calls == 2 and {"reward", "reward_wait"} <= meter.seconds.keys()


class Breaks(Ones):
    """Fails on one prompt."""

    range = (None, None)
    bad: str

    def score(self, samples: Sequence[Sample]) -> list[Any]:
        return [Failed("no") if sample.prompt.id == self.bad else 1.0 * row for row, sample in enumerate(samples)]


@pytest.mark.parametrize("parts", [1, 2])
def test_the_first_failure_of_a_strict_reward_ends_the_run_on_every_rank(parts: int) -> None:
    mail, said = SharedMail(2), ["", ""]
    (first,) = (
        draw.prompt.id for draw in work(ToyPolicy(), stage(Objective(DrAdvantage()))).collector.sampler.draws(0)[:1]
    )

    def rank(number: int, strict: bool) -> None:
        policy, own = ToyPolicy(), stage(Objective(DrAdvantage()), rollout_parts=parts)
        reward = Breaks(bad=first)  # its samples are on rank 0 alone
        own.rewards = {"ones": Use(reward, strict=strict)}  # type: ignore[arg-type]
        try:
            gradients(policy, work(policy, own, FakeGroup(number, mail)).updates(0, Meter()))
        except RunError as error:
            said[number] = str(error)

    for strict in (True, False):
        said[:] = ["", ""]
        threads = [threading.Thread(target=rank, args=(number, strict)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert said[0] == said[1]
        assert ("it ends the run at the first failure (on_failure: raise): reward 'ones': no" in said[0]) == strict


def test_transforms_remember_steps_and_a_resume() -> None:
    def new() -> tuple[Any, ToyPolicy]:
        policy, own = ToyPolicy(), stage(Objective(DrAdvantage()))
        then = (build("transform", {"name": "lagrange", "at_least": 0.5, "rate": 0.3}),)
        own.rewards = {"ones": Use(Ones(), then=then), "twice": Use(Ones(), 0.5)}  # type: ignore[arg-type]
        return work(policy, own), policy

    def run(own: Any, policy: ToyPolicy, numbers: range) -> list[Any]:
        return [found for number in numbers for found in gradients(policy, own.updates(number, Meter()))]

    whole, policy = new()
    straight = run(whole, policy, range(4))
    first, policy = new()
    head = run(first, policy, range(2))
    second, policy = new()
    second.load_state(json.loads(json.dumps(first.state())))
    for got, want in zip(head + run(second, policy, range(2, 4)), straight, strict=True):
        np.testing.assert_array_equal(got, want)
    fresh, policy = new()
    fresh.collector.draws.load_state(first.state()["sampler"])
    assert not np.array_equal(run(fresh, policy, range(2, 3))[0], straight[2])
