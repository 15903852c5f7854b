"""The start-up check stops a run whose replay is not its rollout, and says where."""

from __future__ import annotations

import pytest
import torch

from mmrl.config import load
from mmrl.distributed import Group
from mmrl.errors import RunError
from mmrl.meter import Meter
from mmrl.stages import RLWork


@pytest.fixture(scope="module")
def work() -> RLWork:
    torch.set_num_threads(1)
    small = ["stages.warm=null", "stages.rl.prompts_per_step=2", "stages.rl.group_size=3", "policy.heads=1"]
    resolved = load("quickstart/generative", small)
    resolved.policy.load(torch.device("cpu"))
    resolved.policy.prepare(resolved.stages[0].train, True)
    return RLWork(resolved.stages[0], resolved.policy, Group("cpu"), 0, lambda text: None)


def test_an_honest_replay_passes(work: RLWork) -> None:
    next(work.updates(0, Meter()))
    assert work.parity_checked


def test_a_replay_that_differs_stops_the_run_and_names_the_step(work: RLWork, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = type(work.policy).replay

    def crooked(policy, rollout, chunk, view="original", model="policy"):
        out = honest(policy, rollout, chunk, view, model)
        out.log_prob = out.log_prob + 1e-3 * (chunk.steps == 2)
        return out

    monkeypatch.setattr(type(work.policy), "replay", crooked)
    work.parity_checked = False
    with pytest.raises(RunError, match=r"\|ratio - 1\| = 1.00e-03 at sample \d, step 2 of rank 0"):
        next(work.updates(1, Meter()))
