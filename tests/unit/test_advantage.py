"""Advantages and selection: edge cases a reader can check by eye."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from mmrl.advantage.group import DrAdvantage, GlobalAdvantage, GroupAdvantage, RlooAdvantage
from mmrl.advantage.shaping import Clamp
from mmrl.advantage.stats import group_stats
from mmrl.advantage.types import Advantage, Scored
from mmrl.components import build
from mmrl.curriculum.selection import BestOfN, SelectAll, SelectSignal

RULES: list[Advantage] = [
    GroupAdvantage(scale="group"),
    GroupAdvantage(scale="batch"),
    GroupAdvantage(scale="none"),
    GlobalAdvantage(),
    DrAdvantage(),
    RlooAdvantage(),
]


def scored(reward: Any, group: Any) -> Scored:
    return Scored(np.array(reward, dtype=np.float64), np.array(group))


def test_names_in_a_config() -> None:
    assert build("advantage", {"name": "group", "scale": "none"}) == GroupAdvantage(scale="none")
    assert isinstance(build("advantage", {"name": "dr"}), DrAdvantage)
    assert isinstance(build("advantage", {"name": "rloo"}), RlooAdvantage)
    assert isinstance(build("advantage", {"name": "global"}), GlobalAdvantage)
    assert build("shaping", {"name": "clamp"}) == Clamp(max=5)
    assert build("selection", {"name": "best_of_n", "keep": 4}) == BestOfN(keep=4)
    with pytest.raises(ValidationError, match="scale"):
        build("advantage", {"name": "group"})


@pytest.mark.parametrize("rule", RULES)
def test_constant_float32_group_is_exactly_zero(rule: Advantage) -> None:
    """A float32 residue is not a signal: 12 rewards of 0.3, one of them off by half a unit in the last place."""
    reward = np.full(14, np.float32(0.3), dtype=np.float64)
    reward[3] = np.nextafter(np.float32(0.3), np.float32(1))
    reward[12:] = 0.0, 1.0
    advantage = rule(scored(reward, [0] * 12 + [1, 1]))
    assert (advantage[:12] == 0).all() and advantage[13] > 0


@pytest.mark.parametrize("rule", RULES)
def test_singleton_unscorable_and_empty(rule: Advantage) -> None:
    advantage = rule(scored([5.0, np.nan, 1.0, 0.0, np.nan], [0, 1, 2, 2, 2]))
    assert (advantage[[0, 1, 4]] == 0).all() and advantage[2] > 0 > advantage[3]
    assert rule(scored([], [])).shape == (0,)
    assert (rule(scored([np.nan, np.nan], [0, 0])) == 0).all()


def test_known_values() -> None:
    s = scored([1, 0, 0, 1, 4, 2], [0, 0, 0, 0, 1, 1])
    np.testing.assert_allclose(DrAdvantage()(s), [0.5, -0.5, -0.5, 0.5, 1, -1])
    np.testing.assert_allclose(RlooAdvantage()(s), [2 / 3, -2 / 3, -2 / 3, 2 / 3, 2, -2])
    np.testing.assert_allclose(GroupAdvantage(scale="group", ddof=0)(s), np.array([1, -1, -1, 1, 1, -1]), rtol=3e-4)


def test_group_std_floor() -> None:
    s = scored([0.50, 0.51, 0, 1], [0, 0, 1, 1])
    assert (GroupAdvantage(scale="group")(s)[:2] != 0).all()
    assert (GroupAdvantage(scale="group", std_floor=0.1)(s) != 0).tolist() == [False, False, True, True]


def test_group_metrics() -> None:
    reward = np.array([0.0, 2.0, 1.0, 1.0, 7.0, np.nan])
    stats = group_stats(reward, np.array([4, 4, 9, 9, 2, 3]), ddof=0)
    assert stats.singletons == 1
    assert stats.metrics() == {"group_std": 0.5, "zero_signal_share": 0.75, "singleton_groups": 1.0}
    assert group_stats(np.zeros(0), np.zeros(0, dtype=np.int64)).metrics()["zero_signal_share"] == 0


def test_clamp_changes_only_what_is_beyond() -> None:
    s = scored([0] * 4, [0] * 4)
    assert Clamp(max=2)(np.array([-3, -2, 0.5, 9]), s).tolist() == [-2, -2, 0.5, 2]


def test_infinite_reward_and_unequal_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="sample 1 is infinite"):
        scored([0.0, np.inf], [0, 0])
    with pytest.raises(ValueError, match="must both be"):
        scored([0.0, 1.0], [0])
    with pytest.raises(ValueError, match="components"):
        Scored(np.zeros(2), np.zeros(2, dtype=np.int64), components=np.zeros((3, 1)))


def test_best_of_n_keeps_both_ends_of_each_group() -> None:
    advantage = np.array([3.0, 1, 2, 4, 0, 9, 5, 0, 0])
    s = scored([0, 0, 0, 0, 0, 0, np.nan, 1, 1], [0, 0, 0, 0, 0, 1, 0, 1, 2])
    assert BestOfN(keep=2)(advantage, s).nonzero()[0].tolist() == [3, 4, 5, 7, 8]
    assert BestOfN(keep=4)(advantage, s).nonzero()[0].tolist() == [0, 1, 3, 4, 5, 7, 8]


def test_best_of_n_breaks_ties_by_order_and_drops_nan() -> None:
    s = scored([0.0] * 6, [0] * 6)
    assert BestOfN(keep=2)(np.zeros(6), s).nonzero()[0].tolist() == [0, 5]
    assert BestOfN(keep=2)(np.array([np.nan, 0, 0, 0, 0, np.nan]), s).nonzero()[0].tolist() == [1, 4]


def test_best_of_n_fits_its_groups() -> None:
    BestOfN(keep=8).validate_for(8)
    with pytest.raises(ValueError, match="from 2 to 6"):
        BestOfN(keep=8).validate_for(6)
    with pytest.raises(ValidationError, match="multiple of 2"):
        BestOfN(keep=3)


def test_select_all_and_signal() -> None:
    s = scored([0, 1, 5, 5, np.nan, 3], [0, 0, 1, 1, 0, 2])
    assert SelectAll()(np.zeros(6), s).tolist() == [True, True, True, True, False, True]
    assert SelectSignal()(np.zeros(6), s).tolist() == [True, True, False, False, False, False]
    SelectAll().validate_for(1)
