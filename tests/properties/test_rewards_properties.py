"""Laws of scoring and totals, for any mix of scores, skips and failures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mmrl.reward import Reward, RewardSet
from mmrl.rollout import FAILED, OK, SKIPPED, Prompt, Sample

BOOM = "boom"
outcomes = st.one_of(st.none(), st.just(float("nan")), st.just(BOOM), st.integers(-5, 5))
rows = st.lists(st.tuples(st.integers(0, 3), outcomes, outcomes), min_size=1, max_size=12)


class Given(Reward):
    key: str

    def score(self, samples: Sequence[Sample]) -> Sequence[float | None]:
        if any(sample.meta[self.key] == BOOM for sample in samples):
            raise RuntimeError(BOOM)
        return [sample.meta[self.key] for sample in samples]


def status(value: Any) -> int:
    return SKIPPED if value is None else FAILED if value == BOOM or math.isnan(value) else OK


def naive_total(rows: list[tuple[int, Any, Any]], weights: tuple[float, float]) -> list[float]:
    totals = []
    for group, *values in rows:
        total, parts = 0.0, 0
        for column, (value, weight) in enumerate(zip(values, weights, strict=True)):
            mates = [status(row[column + 1]) for row in rows if row[0] == group]
            if all(mate == SKIPPED for mate in mates):
                continue
            parts += 1
            total += weight * value if status(value) == OK else math.nan
        totals.append(total if parts else math.nan)
    return totals


@given(rows, st.sampled_from([(1.0, 1.0), (0.5, -2.0)]))
def test_scores_and_totals_match_loops(rows: list[tuple[int, Any, Any]], weights: tuple[float, float]) -> None:
    samples = [Sample(Prompt(str(group), ""), meta={"a": a, "b": b}) for group, a, b in rows]
    rewards = RewardSet({"a": (Given(key="a"), weights[0]), "b": (Given(key="b"), weights[1])})
    scores = rewards.score(samples)
    assert scores.status.tolist() == [[status(a), status(b)] for _, a, b in rows]
    assert len(scores.messages) == (scores.status == FAILED).sum()
    total = rewards.total(scores, np.array([group for group, _, _ in rows]))
    np.testing.assert_array_equal(total, naive_total(rows, weights))


@given(rows)
def test_one_samples_failure_never_touches_another(rows: list[tuple[int, Any, Any]]) -> None:
    samples = [Sample(Prompt(str(group), ""), meta={"a": a}) for group, a, _ in rows]
    rewards = RewardSet({"a": (Given(key="a"), 1.0)})
    together = rewards.score(samples)
    alone = [rewards.score([sample]) for sample in samples]
    np.testing.assert_array_equal(together.values, np.concatenate([score.values for score in alone]))
    assert together.status.tolist() == [score.status[0].tolist() for score in alone]
