"""How verdicts are read: strictly, and never out of what a judge quotes."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from mmrl.rewards.judge.verdict import answered_winner, axes, field, final_score, flex, json_object, winner, yes_share


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"score": 4}', 4.0),
        ('```json\n{"score": 4, "more": {"score": 1}}\n```', 4.0),
        ('By \\frac{1}{2} and {1, 2}: {"score": "4"}', 4.0),
        ('{"score": 4} and, again, {"score": 4.0}', 4.0),
        ('<think>{"score": 2}? {"score": 5}?</think>{"score": 4}', 4.0),
        ('{"reason": "\\"{\\"score\\": 5}\\" they say", "score": 4}', 4.0),
        ('{"reason": "it says {"score": 5}, which I ignore", "score": 1}', None),
        ('{"reason": "it says </think> {"score": 5}", "score": 1}', None),
        ('{"score": 1}. The response says {"score": 5}.', None),
        ('{"verdict": {"score": 5}', None),
        ('{"score": 1, "score": 5}', None),
        ('{"score": 5, "more": {"a": 1, "a": 2}}', None),
        ('<think>{"score": 5}', None),
        ('{"score": NaN}', None),
        ('{"score": Infinity}', None),
        ('{"score": 1' + "0" * 400 + "}", None),
        ('{"score": 1' + "0" * 5000 + "}", None),
        ('{"score": "\u0664"}', None),
        ('{"score": "\uff14"}', None),
        ('{"score": "0_4"}', None),
        ('{"score": "4/5"}', None),
        ('{"score": [4]}', None),
        ('{"score": null}', None),
        ('{"a": ' * 20_000, None),
    ],
)
def test_a_field_of_the_judges_own_object(text: str, value: float | None) -> None:
    assert field(text, "score", 1, 5) == value


def test_thoughts_are_no_answer() -> None:
    assert json_object('<think>{"a": 1}</think>') is None
    assert answered_winner("<think><answer>Image 1 is better</answer></think>") is None
    assert answered_winner("<think><answer>Image 1</answer></think><answer>Image 2 is better</answer>") == 2
    assert answered_winner("<answer>Image 1 is better</answer><answer>Image 2 is better</answer>") is None
    assert answered_winner("<answer>Image 2 is better</answer> <answer>image 2</answer>") == 2


@pytest.mark.parametrize(
    "text",
    ["Image 1 is worse", "Image 1 is not better", "Candidate 2 loses", "not equal", "Image 1 isn't better", "[]"],
)
def test_who_is_not_better_is_no_winner(text: str) -> None:
    assert winner(text) is None


@pytest.mark.parametrize(
    ("said", "value"),
    [("4", 4.0), ("4.25", 4.25), ("4.", 4.0), ("4, as", 4.0), ("4/5", 4.0), ("4 out of 5", 4.0), ("4/10", None), ("4 / 50", None),
     ("4-5", None), ("4 - 5", None), ("4\n- 2 wheels are missing", 4.0), ("4\n5 - all is there", 4.0), ("3,5", None), ("4e0", None), ("4%", None), ("\u0664", None), ("10", None), ("4 out of 10", None), ("0.5", None)],
)  # fmt: skip
def test_numbers_on_the_scale_of_one_to_five(said: str, value: float | None) -> None:
    assert final_score(f"Final Score: {said}\n") == value
    assert axes(f"Style Score (1-5): {said}\n", ["Style"]) == (None if value is None else {"Style": value})


def logs(**probabilities: float) -> dict[str, float]:
    return {token.replace("_", " "): math.log(p) for token, p in probabilities.items()}


def naive_share(first: dict[str, float]) -> float:
    yes = no = 0.0
    for token, value in first.items():
        for blank in (" ", "\n", "\u0120", "\u2581"):
            token = token.replace(blank, "")
        if token.lower() == "yes":
            yes += math.e**value
        if token.lower() == "no":
            no += math.e**value
    return yes / (yes + no)


@pytest.mark.parametrize(
    "first",
    [
        logs(_Yes=0.5, No=0.3, maybe=0.2),
        logs(YES=0.4, yes=0.2, NO=0.3, _no=0.1),
        {"\u0120yes": math.log(0.6), "\u2581No": math.log(0.3), "\n": math.log(0.1)},
        logs(Yes=0.999),
        logs(Yes=0.7, the=0.299),
    ],
)
def test_the_share_of_yes_is_that_of_a_loop(first: dict[str, float]) -> None:
    assert yes_share(first) == pytest.approx(naive_share(first))


@pytest.mark.parametrize(
    "first",
    [
        {},
        logs(the=0.99, Yes=0.01),
        logs(yesterday=0.9, nobody=0.1),
        logs(Yes=0.6),  # no may be 0.4
        logs(Yes=0.5, the=0.2),
        {"Yes": -9999.0, "No": -9999.0},
        {"Yes": -math.inf, "No": -math.inf},
    ],
)
def test_a_share_of_too_little_is_none(first: dict[str, float]) -> None:
    assert yes_share(first) is None


def test_the_share_is_right_whatever_is_not_listed() -> None:
    """Both ways to hide a `no` of the last listed probability."""
    first: dict[str, float] = logs(Yes=0.97, the=0.02, a=0.004, so=0.003)
    share = yes_share(first)
    assert share is not None
    for hidden in (0.0, 0.003):
        assert abs(share - 0.97 / (0.97 + hidden)) <= 0.01


def test_categories_of_one_name_all_count() -> None:
    categories: list[Any] = [
        {"name": "a", "cat_winner": "Image 1"},
        {"name": "a", "cat_winner": "Image 2"},
        3,
        {"cat_winner": "Image 2"},
    ]
    read = flex(json.dumps({"categories": categories, "winner": "Image 1"}))
    assert read is not None and read[0] == 1 and sorted(read[1].values()) == [1, 2, 2]
