"""What the core does for a policy that something else draws for: who publishes when, and what is told of the difference."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from toy_policy import FakeGroup, SharedMail, ToyPolicy, gradients, stage, work

from mmrl.advantage.group import DrAdvantage
from mmrl.errors import RunError, UserError
from mmrl.meter import Meter
from mmrl.objective.correction import Tis
from mmrl.objective.objective import Objective
from mmrl.stages.engine import UNCORRECTED
from mmrl.stages.rl import RLWork


class Published(ToyPolicy):
    """Remembers, together with other ranks, what was published in which order."""

    def __init__(self, rank: int, log: list[tuple[int, str, bool]], broken: bool = False) -> None:
        super().__init__()
        self.rank, self.log, self.broken = rank, log, broken

    def publish(self, version: str, writes: bool) -> None:
        if self.broken and writes:
            raise UserError("the server is gone")
        self.log.append((self.rank, version, writes))


def two_ranks(broken: bool = False) -> tuple[list[tuple[int, str, bool]], list[Exception | None]]:
    log: list[tuple[int, str, bool]] = []
    mail, problems = SharedMail(2), [None, None]  # type: ignore[var-annotated]

    def rank(number: int) -> None:
        policy = Published(number, log, broken)
        own = work(policy, stage(Objective(DrAdvantage())), FakeGroup(number, mail))
        try:
            for step in range(2):
                gradients(policy, own.updates(step, Meter()))
        except UserError as error:
            problems[number] = error

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return log, problems


def test_one_rank_writes_and_the_other_follows() -> None:
    log, problems = two_ranks()
    assert problems == [None, None]
    assert [(rank, writes) for rank, _, writes in log] == [(0, True), (1, False)] * 2
    versions = [version for _, version, _ in log]
    assert versions[0] == versions[1] != versions[2] == versions[3]
    assert [version.rpartition("-")[2] for version in versions] == ["1", "1", "2", "2"]
    assert two_ranks()[0][0][1] != versions[0]  # another run never takes these weights for its own


def test_no_rank_waits_for_one_that_cannot_publish() -> None:
    log, problems = two_ranks(broken=True)
    assert log == [] and "the server is gone" in str(problems[0])
    assert isinstance(problems[1], RunError) and "the server is gone" in str(problems[1])


@pytest.mark.parametrize(("gap", "far"), [(0.04, False), (-0.2, True)])
def test_the_gap_is_logged_and_warned_of(gap: float, far: bool) -> None:
    said: list[str] = []
    policy, meter = ToyPolicy(gap), Meter()
    own: Any = stage(Objective(DrAdvantage(), correction=Tis()))
    works = RLWork(own, policy, FakeGroup(), 7, said.append)  # type: ignore[arg-type]
    gradients(policy, works.updates(0, meter))
    assert meter.reduce(FakeGroup())["rollout/engine_gap"] == pytest.approx(abs(gap), rel=1e-4)
    assert any("off the trainer's on average" in line for line in said) == far
    assert UNCORRECTED not in said


def test_an_uncorrected_engine_is_told_of_once() -> None:
    said: list[str] = []
    policy = ToyPolicy(0.01)
    works = RLWork(stage(Objective(DrAdvantage())), policy, FakeGroup(), 7, said.append)  # type: ignore[arg-type]
    for step in range(2):
        gradients(policy, works.updates(step, Meter()))
    assert said.count(UNCORRECTED) == 1
