"""Laws of all verifiable rewards: a batch equals its samples, scores stay in range, reasoning changes nothing."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.components import build
from mmrl.reward import Graded, RewardSet
from mmrl.rollout import OK, Prompt, Sample

REWARDS: list[tuple[dict[str, Any], Any]] = [
    ({"name": "exact"}, "red car"),
    ({"name": "yes_no"}, "no"),
    ({"name": "choice"}, "B"),
    ({"name": "number"}, "12 cm"),
    ({"name": "relaxed_number"}, 12),
    ({"name": "count", "mode": "relative"}, [1, 2]),
    ({"name": "math", "engine": "numbers"}, r"\frac{1}{2}"),
    ({"name": "bbox_iou", "boxes": "matched", "measure": "giou"}, [[0, 0, 1, 2], [1, 1, 3, 3]]),
    ({"name": "point_in_box", "sigma": 0.5}, [0, 0, 1, 2]),
    ({"name": "temporal_iou"}, [1, 2]),
    ({"name": "permutation", "mode": "displacement"}, [2, 1, 3]),
    ({"name": "anls"}, "red car"),
]
PIECES = [
    "<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "}", "[", "]", "{", "(", ")", ",", "1", "2", "3", ".", "/", "-", " ", "\n",
    "B", "A", "answer is ", "yes", "no", '"bbox_2d": ', "[0, 0, 1, 1]", "```json", "```", "red car", "$", "%", "\\frac", "^", ":", "1e9", "1,000",
    "\\", "<|im_end|>", "NaN", "to", "é", "\0",
]  # fmt: skip
texts = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


def samples(found: list[str], target: Any) -> list[Sample]:
    return [Sample(Prompt("p", "q", target=target), text=text) for text in found]


@pytest.mark.parametrize(
    ("spec", "target"), REWARDS, ids=lambda value: value["name"] if isinstance(value, dict) and "name" in value else ""
)
@settings(max_examples=25, deadline=None)
@given(found=st.lists(texts, min_size=1, max_size=4))
def test_any_text_has_one_finite_score_in_range(spec: dict[str, Any], target: Any, found: list[str]) -> None:
    reward = build("reward", spec)
    rewards = RewardSet({"r": (reward, 1.0)})
    together = rewards.score(samples(found, target))
    assert (together.status == OK).all(), together.messages
    for text, value in zip(found, together.values[:, 0], strict=True):
        (alone,) = reward.score(samples([text], target))
        assert isinstance(alone, Graded) and alone == value and math.isfinite(value) and 0 <= value <= 1
        if alone.how in ("unparsed", "truncated"):
            assert value == 0


@pytest.mark.parametrize(
    ("spec", "target"), REWARDS, ids=lambda value: value["name"] if isinstance(value, dict) and "name" in value else ""
)
@settings(max_examples=15, deadline=None)
@given(answer=texts, reasoning=texts)
def test_reasoning_never_changes_a_score(spec: dict[str, Any], target: Any, answer: str, reasoning: str) -> None:
    for tag in ("<think>", "</think>", "<|im_end|>"):
        reasoning = reasoning.replace(tag, "")
        answer = answer.replace(tag, "")
    reward = build("reward", spec)
    plain, with_reasoning, open_ended = reward.score(
        samples([answer, f"<think>{reasoning}</think>{answer}", f"{answer}<think>{reasoning}"], target)
    )
    assert (plain, plain.how) == (with_reasoning, with_reasoning.how)
    assert (open_ended, open_ended.how) == (0.0, "truncated")


LONG = [
    " " * 60_000, "*" * 60_000, "[" * 60_000, "\\boxed{" * 9_000, "<answer>" * 8_000, "<think>" * 8_000, "1" * 60_000, "1,111" * 12_000 + "x",
    "1 " * 30_000 + "x", "$" * 60_000, "{\"a\":" * 10_000, "answer is " * 6_000, "<|" * 30_000, "1/" * 30_000, "\n" * 60_000, "A " * 30_000,
]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "target"), REWARDS, ids=lambda value: value["name"] if isinstance(value, dict) and "name" in value else ""
)
def test_endless_texts_are_wrong_and_never_stop_a_run(spec: dict[str, Any], target: Any) -> None:
    """Whatever takes more than linear time in these lengths shows as a test that does not end."""
    values = build("reward", spec).score(samples(LONG, target))
    assert max(values) <= (0.1 if spec["name"] != "anls" else 0.0)


def test_what_a_reward_leaves_in_a_sample_can_be_written() -> None:
    batch = samples(["B", "x"], "B")
    RewardSet({"r": (build("reward", {"name": "choice"}), 1.0)}).score(batch)
    assert json.loads(json.dumps(batch[0].meta)) == {"graded": {"r": "letter_untagged"}}
