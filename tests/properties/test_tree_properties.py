"""What must hold for the edges of any trees."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.advantage.branch import BranchAdvantage
from mmrl.advantage.tree import apart
from mmrl.advantage.types import Scored
from mmrl.objective.objective import Objective

few = settings(max_examples=30, deadline=None)


@st.composite
def trees(draw: st.DrawFn) -> tuple[Scored, np.ndarray]:
    """2 to 16 samples of up to 3 trees of up to 5 steps, in any order, some unscorable; which edges drew noise, `(N, S)` bool."""
    n, depth = draw(st.integers(2, 16)), draw(st.integers(1, 5))
    group = np.array(draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)), dtype=np.int64)
    turns = [tuple(draw(st.lists(st.integers(0, 1), min_size=depth, max_size=depth))) for _ in range(n)]
    node = np.array([[hash((k, way[: k + 1])) for k in range(depth)] for way in turns], dtype=np.int64)
    noisy = np.array([[hash((int(key), k, way[: k + 1])) % 3 > 0 for k in range(depth)]
                      for key, way in zip(group, turns, strict=True)])  # fmt: skip
    reward = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, np.nan]), min_size=n, max_size=n))
    return Scored(np.array(reward), group, node=apart(group, node), log_prob=np.zeros(node.shape)), noisy


@few
@given(made=trees(), cut=st.integers(0, 16))
def test_every_edge_that_drew_noise_is_trained_once(made: tuple[Scored, np.ndarray], cut: int) -> None:
    """By the first scorable sample that has it; edges without a scorable leaf are not; two ranks find the same."""
    scored, noisy = made
    assert scored.node is not None
    objective = Objective(BranchAdvantage())
    keep = torch.as_tensor(objective.selected(objective.advantages(scored), scored, 0))
    plan, depth = torch.ones(noisy.shape[1], dtype=torch.bool), noisy.shape[1]

    def trained(rows: slice) -> torch.Tensor:
        mask = torch.as_tensor(noisy[rows])
        return objective.train_mask(mask, plan, [0] * len(mask), keep[rows])

    first: dict[tuple[int, int], int] = {}
    for row in np.flatnonzero(scored.scorable).tolist():
        for k in np.flatnonzero(noisy[row]).tolist():
            first.setdefault((k, int(scored.node[row, k])), row)
    whole = trained(slice(None))
    assert {(k, row) for (k, _), row in first.items()} == {(k, row) for row, k in whole.nonzero().tolist()}
    assert torch.equal(torch.cat([trained(slice(cut)), trained(slice(cut, None))]), whole)
    assert keep.shape == (len(scored), depth)
