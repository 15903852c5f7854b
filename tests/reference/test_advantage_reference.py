"""Advantages against the loops."""

from __future__ import annotations

import naive_core
import numpy as np
import pytest

from mmrl.advantage.group import DrAdvantage, GlobalAdvantage, GroupAdvantage, RlooAdvantage
from mmrl.advantage.types import Advantage, Scored


def ragged_batch() -> Scored:
    """Groups of 5, 4, 3, 2, 1 in mixed order; a constant one, a singleton, failed rewards, a group of failures only."""
    rng = np.random.default_rng(0)
    group = np.array([7, 3, 7, 9, 3, 7, 11, 9, 3, 7, 5, 9, 7, 3, 20, 20, 30, 30])
    reward = rng.normal(size=len(group)) * 3 + 1
    reward[group == 9] = np.float32(0.3)
    reward[[2, 13, 16, 17]] = np.nan
    reward[group == 20] = [1.0, 1.0 + 1e-3]
    return Scored(reward, group)


CASES = [
    (GroupAdvantage(scale="group"), {"rule": "group"}),
    (GroupAdvantage(scale="group", ddof=0, eps=1e-6), {"rule": "group", "ddof": 0, "eps": 1e-6}),
    (GroupAdvantage(scale="group", std_floor=0.01), {"rule": "group", "floor": 0.01}),
    (GroupAdvantage(scale="batch"), {"rule": "batch"}),
    (GroupAdvantage(scale="none"), {"rule": "none"}),
    (GlobalAdvantage(), {"rule": "batch", "ddof": 0}),
    (DrAdvantage(), {"rule": "none"}),
    (RlooAdvantage(), {"rule": "rloo"}),
]


@pytest.mark.parametrize(("component", "options"), CASES)
def test_equals_the_loop(component: Advantage, options: dict) -> None:
    scored = ragged_batch()
    expected = naive_core.advantages(scored.reward.tolist(), scored.group.tolist(), **options)
    actual = component(scored)
    assert actual.dtype == np.float64
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)
