"""Win rates against loops over a table of verdicts: orders, ties, budgets, and verdicts that are not there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import PrivateAttr

from mmrl.reward import Failed
from mmrl.reward.pairwise import PairwiseReward, Verdict, pairs_of
from mmrl.rollout import Prompt, Sample

Table = dict[tuple[int, int], Any]


class Told(PairwiseReward):
    """Says what stands in a table for (first, second); "failed" is a comparison that failed."""

    _table: Table = PrivateAttr(default_factory=dict)

    def compare(self, pairs: Sequence[tuple[Sample, Sample]]) -> list[Verdict]:
        said = [self._table[int(str(first.text)), int(str(second.text))] for first, second in pairs]
        return [Failed("failed") if one == "failed" else one for one in said]


def naive(table: Table, count: int, pairs: list[tuple[int, int]], both: bool, half: bool) -> list[float | None]:
    found: list[float | None] = []
    for i in range(count):
        won = played = 0.0
        for a, b in pairs:
            if i not in (a, b):
                continue
            other = b if i == a else a
            said = [table[a, b]] + ([table[b, a]] if both else [])
            if "failed" in said:
                continue
            if None in said:
                if not half:
                    continue
                share = 0.5
            else:
                share = 0.0
                for first, second in ((a, b), (b, a)) if both else ((a, b),):
                    share += table[first, second] if first == i else 1 - table[first, second]
                share /= len(said)
            assert other != i
            won, played = won + share, played + 1
        found.append(won / played if played else None)
    return found


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_win_rates_are_those_of_a_loop_over_the_verdicts(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 6))
    verdict = st.sampled_from([0.0, 0.5, 1.0, 0.25, None, "failed"])
    table = {(i, j): data.draw(verdict) for i in range(count) for j in range(count) if i != j}
    orders: Literal["both", "one"] = data.draw(st.sampled_from(["both", "one"]))
    unreadable: Literal["drop", "half"] = data.draw(st.sampled_from(["drop", "half"]))
    most = data.draw(st.one_of(st.none(), st.integers(count, 20)))
    reward = Told(orders=orders, unreadable=unreadable, max_pairs=most)
    reward._table = table
    found = reward.score([Sample(Prompt("p", "x"), text=str(k)) for k in range(count)])
    wanted = naive(table, count, pairs_of(count, most, "p"), orders == "both", unreadable == "half")
    for one, value in zip(found, wanted, strict=True):
        assert isinstance(one, Failed) if value is None else float(one) == pytest.approx(value)


@given(st.integers(2, 7), st.data())
def test_what_a_place_is_worth_cancels_in_both_orders(count: int, data: st.DataObject) -> None:
    """A judge that adds the same to whoever is shown first; of `one` order the bias stays."""
    bias = data.draw(st.floats(-0.4, 0.4))
    fair = {(i, j): data.draw(st.floats(0.4, 0.6)) for i in range(count) for j in range(i)}
    table = {(i, j): (fair[i, j] if j < i else 1 - fair[j, i]) for i in range(count) for j in range(count) if i != j}
    rates = []
    for shift in (0.0, bias):
        reward = Told()
        reward._table = {key: value + shift for key, value in table.items()}
        rates.append(
            [float(one) for one in reward.score([Sample(Prompt("p", "x"), text=str(k)) for k in range(count)])]
        )
    assert rates[0] == pytest.approx(rates[1]) and sum(rates[0]) == pytest.approx(count / 2)
