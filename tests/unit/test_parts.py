"""Named parts of a score: what a reward leaves on a sample, and where they are found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mmrl.reward import Failed, Reward, RewardSet
from mmrl.rollout import FAILED, OK, SKIPPED, Prompt, Sample


class Leaving(Reward):
    """Leaves what the prompt's target says, and scores 1; None and "fail" are statuses."""

    def score(self, samples: Sequence[Sample]) -> list[Any]:
        found: list[Any] = []
        for sample in samples:
            left, score = sample.prompt.target
            if left is not None:
                sample.meta["components"] = left
            found.append(Failed("it is so") if score == "fail" else score)
        return found


class Silent(Reward):
    """Scores 2 and leaves nothing."""

    def score(self, samples: Sequence[Sample]) -> list[Any]:
        return [2.0] * len(samples)


def sample(left: Any, score: Any = 1.0) -> Sample:
    return Sample(Prompt("p", "x", target=(left, score)))


def test_parts_are_found_under_the_name_of_each_reward() -> None:
    given = [sample({"a": 1, "b": np.float32(0.5)}), sample(None), sample({})]
    scores = RewardSet({"one": (Leaving(), 1.0), "quiet": (Silent(), 1.0), "two": (Leaving(), 1.0)}).score(given)
    assert (scores.status == OK).all() and scores.values[:, 0].tolist() == [1.0, 1.0, 1.0]
    assert given[0].meta["components"] == {"one": {"a": 1.0, "b": 0.5}, "two": {"a": 1.0, "b": 0.5}}
    assert all(type(value) is float for value in given[0].meta["components"]["one"].values())
    assert "components" not in given[1].meta and given[2].meta["components"] == {"one": {}, "two": {}}


def test_a_sample_that_is_there_twice_keeps_its_parts() -> None:
    one = sample({"a": 1.0})
    scores = RewardSet({"one": (Leaving(), 1.0), "two": (Leaving(), 1.0)}).score([one, one])
    assert (scores.status == OK).all(), scores.messages
    assert one.meta["components"] == {"one": {"a": 1.0}, "two": {"a": 1.0}}


def test_without_a_score_there_are_no_parts() -> None:
    given = [sample({"a": 1.0}, None), sample({"a": 1.0}, "fail"), sample({"a": 1.0})]
    for one in given:
        one.meta["components"] = {"it": {"old": 0.0}, "other": {"b": 2.0}}
    scores = RewardSet({"it": (Leaving(), 1.0)}).score(given)
    assert scores.status[:, 0].tolist() == [SKIPPED, FAILED, OK]
    assert [one.meta["components"] for one in given[:2]] == [{"other": {"b": 2.0}}] * 2
    assert given[2].meta["components"] == {"it": {"a": 1.0}, "other": {"b": 2.0}}


@pytest.mark.parametrize(
    "left",
    [{"a": math.nan}, {"a": math.inf}, {"a": "1"}, {"a": True}, {1: 1.0}, {"a": None}, {"a": 10**400}, [1.0], 3.0],
)
def test_what_is_no_finite_float_is_a_failure_of_its_sample(left: Any) -> None:
    given = [sample(left), sample({"a": 1.0})]
    scores = RewardSet({"it": (Leaving(), 1.0)}).score(given)
    assert scores.status[:, 0].tolist() == [FAILED, OK] and np.isnan(scores.values[0, 0])
    assert "reward 'it' left in meta['components']" in scores.messages[0] and "finite" in scores.messages[0]
    assert "on sample 0 of prompt 'p'" in scores.messages[0] and "components" not in given[0].meta
