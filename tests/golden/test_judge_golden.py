"""Reading of judges' answers against the original parsers; every case that differs is named with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmrl.rewards.judge.verdict import answered_winner, axes, edit_scores, final_score, flex, winner

CASES = json.loads((Path(__file__).parent / "data" / "unified_reward.json").read_text())["cases"]
AXES = ("alignment", "coherence", "style")


def named(fn: str) -> list[Any]:
    found = [case for case in CASES if case["fn"] == fn]
    assert found
    return found


def test_every_case_is_looked_at() -> None:
    assert {case["fn"] for case in CASES} == {
        "extract_normalized_rewards", "verl_omni parse+aggregate", "flow_grpo Final Score regex, /5",
        "think pairwise win rate", "flex pairwise win rate", "flex _normalize_winner", "edit _parse_scores",
        "edit pairwise win rate",
    }  # fmt: skip


def test_three_axes() -> None:
    for case in named("verl_omni parse+aggregate"):
        found, wanted = axes(case["inputs"], AXES), case["outputs"]["axes"]
        whole = set(wanted) == set(AXES) and all(1 <= value <= 5 for value in wanted.values())
        if case["inputs"] == "3 4 5":
            assert found is None  # the original takes three bare numbers for the axes
        elif whole:
            assert found == pytest.approx(wanted)
        else:
            assert found is None  # the original scores an axis that is missing or out of range
    (batch,) = named("extract_normalized_rewards")
    for row, reply in enumerate(batch["inputs"]):
        found = axes(reply, AXES)
        if row == 0:
            assert found == {axis: batch["outputs"][axis][0] for axis in AXES}
        else:
            assert found is None  # the original fills a missing axis with the mean of the batch


def test_the_final_score() -> None:
    differs = {
        "final score: 4": 4.0,  # the original's pattern is case-sensitive, and a miss is a zero
        "Final Score: 10": None,  # the original reads one digit, "1"
        "x Final Score:3\nFinal Score: 5": 5.0,  # the original takes the first, here the last counts
        "none": None,  # the original's zero
    }
    for case in named("flow_grpo Final Score regex, /5"):
        wanted = differs.get(case["inputs"], case["outputs"] * 5)
        assert final_score(case["inputs"]) == (None if wanted is None else pytest.approx(wanted)), case


def test_winners() -> None:
    for case in named("flex _normalize_winner"):
        assert winner(case["inputs"][0]) == case["outputs"], case
    (think,) = named("think pairwise win rate")
    found = [answered_winner(one["model_output"]) for one in think["inputs"]]
    # the original is case-sensitive (the last one is half a win each there) and gives what it cannot read half a win each
    assert found == [1, 2, None, 0, 1, 1]
    (edit,) = named("edit pairwise win rate")
    assert [winner(one["model_output"]) for one in edit["inputs"]] == [1, 2, 0]
    for case in named("flex pairwise win rate"):
        for one in case["inputs"]:
            read = flex(one["model_output"])
            assert read is None or read[0] in (0, 1, 2)


def test_edit_scores() -> None:
    for case in named("edit _parse_scores"):
        missing = case["outputs"] == [0.0, 0.0]  # the original's answer to what it cannot read
        assert edit_scores(case["inputs"][0]) == (None if missing else tuple(case["outputs"])), case
