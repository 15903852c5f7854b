"""BranchGRPO's edges and DDPO's queues against the loops."""

from __future__ import annotations

import naive_generative as naive
import numpy as np
import pytest

from mmrl.advantage.branch import BranchAdvantage, Fusion
from mmrl.advantage.ddpo import PerPromptHistory
from mmrl.advantage.history import History
from mmrl.advantage.tree import apart
from mmrl.advantage.types import Scored


@pytest.mark.parametrize("fusion", ["uniform", "path"])
@pytest.mark.parametrize("seed", range(4))
def test_branches(seed: int, fusion: Fusion) -> None:
    """Trees whose nodes split into any number of children, whose rewards partly failed, two in one batch."""
    rng = np.random.default_rng(seed)
    trees = [[tuple(np.maximum.accumulate(rng.integers(0, 3, 5)).tolist()) for _ in range(size)] for size in (9, 4)]
    trees = [[(*way, leaf) for leaf, way in enumerate(ways)] for ways in trees]
    reward = np.where(rng.random(13) < 0.2, np.nan, rng.normal(size=13))
    numbers = {(g, way[: k + 1]): 0.0 for g, ways in enumerate(trees) for way in ways for k in range(6)}
    edge = {node: float(rng.normal()) for node in numbers}
    ids = {node: number for number, node in enumerate(numbers)}
    group = np.repeat([0, 1], [9, 4])
    rows = [(g, way) for g, ways in enumerate(trees) for way in ways]
    node = np.array([[ids[g, way[: k + 1]] for k in range(6)] for g, way in rows])
    log_prob = np.array([[edge[g, way[: k + 1]] for k in range(6)] for g, way in rows])
    found = BranchAdvantage(fusion=fusion)(Scored(reward, group, node=apart(group, node), log_prob=log_prob))
    for g, ways in enumerate(trees):
        own = None if fusion == "uniform" else {way: one for (tree, way), one in edge.items() if tree == g}
        expected = naive.branch(reward[group == g].tolist(), ways, own)
        np.testing.assert_allclose(found[group == g], expected, atol=1e-9)
    assert np.abs(found).max() > 0.1


def test_latest_rewards_of_a_prompt() -> None:
    """8 steps of prompts that come back at different rates, failures, a prompt that is always the same; a checkpoint in between."""
    rng = np.random.default_rng(0)
    rule, history = PerPromptHistory(keep=10, min_count=6), History(keep=10)
    steps = []
    for number in range(8):
        prompts = ["a"] * 4 + ["b"] * 2 + ["c"] * 3 + [f"new {number}"] * 3
        reward = rng.normal(size=12).round(1)
        reward[6:9] = 0.3
        reward[rng.integers(0, 4)] = np.nan
        steps.append((prompts, reward.tolist()))
        scored = Scored(reward, np.repeat(range(4), [4, 2, 3, 3]), prompts=tuple(prompts))
        found = rule(history.known(scored))
        np.testing.assert_allclose(found, naive.latest(steps, 10, 6, 1e-6)[-1], atol=1e-9)
        history.add(scored)
        history = History.from_state(history.state(), 10)
    assert not found[6:9].any() and found[9:].any()
    assert len(history.latest["a"]) == 10 and len(history.latest["new 0"]) == 3
    with pytest.raises(ValueError, match="never reached"):
        PerPromptHistory(keep=8, min_count=16)
