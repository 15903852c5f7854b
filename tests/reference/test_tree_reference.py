"""TreePO's advantages and DCPO's smooth standardisation against the loops."""

from __future__ import annotations

import naive_reasoning as naive
import numpy as np
import pytest

from mmrl.advantage.dcpo import DcpoAdvantage
from mmrl.advantage.group import standardised
from mmrl.advantage.history import History
from mmrl.advantage.tree import TreePo, segments, subgroup, whitened
from mmrl.advantage.types import Scored


def random_tree(
    seed: int = 0, groups: int = 3, size: int = 7, steps: int = 8
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards (one NaN), groups, and nodes: every sample leaves an earlier one's way at some step, some end early."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), size)
    node = np.full((groups * size, steps), -1)
    fresh = iter(range(10**6))
    for key in range(groups):
        for k, row in enumerate(np.flatnonzero(group == key).tolist()):
            way: list[int] = []
            while len(way) < steps:
                way += [next(fresh)] * int(rng.integers(1, 4))
            start = int(rng.integers(0, steps)) if k else 0
            mate = int(np.flatnonzero(group == key)[rng.integers(0, k)]) if k else row
            own = np.array(way[:steps])
            own[:start] = node[mate, :start]
            alive = int(rng.integers(start + 1, steps + 1))
            node[row, :alive] = own[:alive]
            if (own[:start] == -1).any():  # its mate ended before that
                node[row, start:] = -1
    reward = rng.random(len(group)).round(1)
    reward[group == 2] = (reward[group == 2] > 0.5).astype(float)
    reward[4] = np.nan
    return reward, group, node


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("weighting", ["size", "mean"])
@pytest.mark.parametrize("drop_flat", [False, True])
def test_subgroups(seed: int, weighting: str, drop_flat: bool) -> None:
    reward, group, node = random_tree(seed)
    expected = naive.treepo(reward.tolist(), group.tolist(), node.tolist(), weighting == "mean", drop_flat)
    found = subgroup(reward, group, node, weighting, drop_flat)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.abs(found - standardised(reward, group, "none"))[~np.isnan(found)].max() > 0.01


@pytest.mark.parametrize("seed", range(4))
def test_segments(seed: int) -> None:
    reward, group, node = random_tree(seed)
    found = segments(reward, group, node, sibling_std=False)
    np.testing.assert_allclose(found, naive.progress(reward.tolist(), node.tolist()), atol=1e-12)
    assert not found[4].any() and not found[node == -1].any()


def test_without_branches_it_is_the_group_mean() -> None:
    reward, group, _ = random_tree()
    node = np.arange(len(reward))[:, None] + np.zeros((1, 4), dtype=np.int64)
    found = np.nan_to_num(subgroup(reward, group, node))
    np.testing.assert_allclose(found, standardised(reward, group, "none"), atol=1e-12)


def test_whitening_counts_steps_and_a_group_without_signal_gets_nothing() -> None:
    reward, group, node = random_tree()
    reward[group == 1] = 0.5
    length = (node != -1).sum(1).astype(np.float64)
    advantage = TreePo()(Scored(reward, group, node=node, extra={"length": length}))
    assert not advantage[group == 1].any() and advantage[4] == 0 and np.isfinite(advantage).all()
    values = [v for v, n in zip(subgroup(reward, group, node), length, strict=True) if v == v for _ in range(int(n))]
    one = (np.nan_to_num(subgroup(reward, group, node)) - naive.mean(values)) / naive.spread(values)
    np.testing.assert_allclose(advantage[group == 0][:4], one[group == 0][:4], rtol=1e-6)
    assert not whitened(np.array([3.0]), np.array([1.0])).any()


def test_smooth_standardisation_over_several_visits() -> None:
    """Every prompt drawn again and again, its groups at times constant; a checkpoint in between changes nothing."""
    rng = np.random.default_rng(0)
    history, past = History(), dict[int, list[list[float]]]()
    constant = 0
    for step in range(6):
        group = np.repeat([0, 1, 2], 5)
        reward = (
            (rng.random(15) < [[0.9], [0.5], [0.1]]).astype(float).flatten()[rng.permutation(15) * 0 + np.arange(15)]
        )
        if step % 2:
            reward[group == 1] = float(step % 4 == 1)
        reward[7] = np.nan if step == 3 else reward[7]
        scored = Scored(reward, group, prompts=tuple(map(str, group.tolist())))
        found = DcpoAdvantage()(history.known(scored))
        np.testing.assert_allclose(found, naive.smooth(reward.tolist(), group.tolist(), past), atol=1e-9)
        if step == 0:
            np.testing.assert_allclose(found, standardised(reward, group, "group", eps=1e-12), atol=1e-9)
        elif step % 2:
            constant += bool(found[group == 1].any())
        history.add(scored)
        for key in range(3):
            past.setdefault(key, []).append(
                [r for r, g in zip(reward.tolist(), group.tolist(), strict=True) if g == key and r == r]
            )
        history = History.from_state(history.state())
    assert constant == 3
