"""Where the answer stands: reasoning, answer blocks, boxes, and the forms a text may have."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mmrl.rewards.verifiable.parse.format import follows
from mmrl.rewards.verifiable.parse.formula import parse_formula
from mmrl.rewards.verifiable.parse.region import answer_region, answer_text, boxed, clean, without_reasoning


@pytest.mark.parametrize(
    ("text", "rest", "truncated"),
    [
        ("3", "3", False),
        ("<think>a</think>3", "3", False),
        ("<THINK>a</Think>3", "3", False),
        ("<think>a<think>b</think>c</think>3", "3", False),
        ("x<think>a</think>y<think>b</think>z", "xyz", False),
        ("a</think>3", "3", False),
        ("a</think>b</think>3", "3", False),
        ("a</think>b<think>c</think>3", "b3", False),
        ("<think>a", "", True),
        ("3<think>a", "", True),
        ("<think>a<think>b</think>3", "", True),
        ("<think>a</think>3<think>b", "", True),
        ("< think >a< / think >3", "< think >a< / think >3", False),
        ("<thinking>3", "<thinking>3", False),
    ],
)
def test_reasoning_is_removed(text: str, rest: str, truncated: bool) -> None:
    assert without_reasoning(text) == (rest, truncated)


def test_reasoning_that_the_prompt_opened() -> None:
    assert without_reasoning("it is 3", opened=True) == ("", True)
    assert without_reasoning("it is 3</think>4", opened=True) == ("4", False)
    assert without_reasoning("a<think>b</think>c</think>4", opened=True) == ("4", False)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<answer>3</answer>", ("3", False, False)),
        ("<ANSWER>\n3\n</Answer>", ("3", False, False)),
        ("<answer>1</answer> or <answer>2</answer>", ("2", False, False)),
        ("<answer>a<answer>b</answer></answer>", ("b", False, False)),
        ("<think><answer>1</answer></think><answer>2</answer>", ("2", False, False)),
        ("  3 ", ("3", False, True)),
        ("3</answer>", ("3", False, True)),
        ("<answer>12", ("", True, False)),
        ("<answer>1</answer> no, <answer>2", ("", True, False)),
        ("<answer></answer>", ("", False, False)),
        ("", ("", False, True)),
    ],
)
def test_the_last_innermost_answer_block_is_the_region(text: str, wanted: Any) -> None:
    assert tuple(answer_region(text)) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (r"\boxed{42}", "42"),
        (r"a \boxed{1} b \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("no box", None),
        (r"\boxed{unclosed", None),
        (r"\boxed{1} and \boxed{2", None),
        (r"\boxed{a{b}c}", "a{b}c"),
        (r"\boxed {3}", "3"),
        (r"\fbox{3}", "3"),
        (r"\boxed{}", ""),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\{}", r"\{"),
        (r"\boxed{a\\}", r"a\\"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\mathbox{3}", None),
    ],
)
def test_boxes_by_counting_braces(text: str, wanted: str | None) -> None:
    assert boxed(text) == wanted


@pytest.mark.parametrize(
    ("text", "value", "label"),
    [
        (r"<think>a</think>so \boxed{3}", "3", "boxed_untagged"),
        (r"<answer>it is \boxed{3}</answer>", "3", "boxed"),
        ("<answer>3</answer>", "3", "answer"),
        ("3", "3", "text_untagged"),
        ("<think>3", None, "truncated"),
        ("<answer>3", None, "truncated"),
        (r"so \boxed{3", None, "truncated"),
        (r"<answer>\boxed{3</answer>", None, "unparsed"),
        ("<answer> </answer>", None, "unparsed"),
        (r"\boxed{}", None, "unparsed"),
        ("", None, "unparsed"),
        ("None", "None", "text_untagged"),
    ],
)
def test_answers_and_their_labels(text: str, value: str | None, label: str) -> None:
    parsed = answer_text(text)
    assert (parsed.value, parsed.label) == (value, label)
    assert parsed.unparsed == (value is None) and parsed.truncated == (label == "truncated")


def test_special_tokens_and_line_ends_go_and_case_stays() -> None:
    assert clean("A\r\nb<|im_end|></s><|endoftext|><pad>") == "A\nb"
    assert clean("1 < 2 | x > 3 |>") == "1 < 2 | x > 3 |>"
    assert clean("< think >1 / 2< / think >", repair_tags=True) == "<think>1 / 2</think>"


GOOD = "<think>a</think>"


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        (
            "think_answer",
            [f"{GOOD}<answer>b</answer>", f"{GOOD}\n <answer>b</answer>\n", f"{GOOD}<answer></answer><|im_end|>"],
            [
                f"x{GOOD}<answer>b</answer>",
                f" {GOOD}<answer>b</answer>",
                f"{GOOD} b",
                f"{GOOD}<answer>b</answer><answer>c</answer>",
                "<think>a<think>b</think></think><answer>c</answer>",
                f"{GOOD}so <answer>b</answer>",
                "<answer>b</answer>",
                f"{GOOD}<answer>b",
                "",
            ],
        ),
        (
            "think_boxed",
            [f"{GOOD}\\boxed{{1}}", f"{GOOD}\nso\n\\boxed{{1}}\ndone", f"{GOOD}\\boxed{{}}"],
            [f"{GOOD} no box", "\\boxed{1}", "<think>\\boxed{1}</think>", f" {GOOD}\\boxed{{1}}", f"{GOOD}\\boxed{{1"],
        ),
        ("answer_only", ["<answer>b</answer>", "<answer>b</answer>\n"], [f"{GOOD}<answer>b</answer>", "b"]),
        ("boxed_only", ["so \\boxed{1}."], ["1", f"{GOOD}\\boxed{{1}}", "<answer>\\boxed{1}</answer>"]),
    ],
)
def test_forms(form: Any, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not follows(text, form)] == []
    assert [text for text in bad if follows(text, form)] == []


def test_forms_with_options() -> None:
    assert follows("a</think><answer>b</answer>", "think_answer", opened=True)
    assert not follows("a</think><answer>b</answer>", "think_answer")
    assert follows("< think >a</ think><answer>1/2</answer>", "think_answer", repair_tags=True)
    assert follows("x\ny", "regex", "x.y") and not follows("x\ny!", "regex", "x.y")


@pytest.mark.parametrize(
    ("text", "value", "rule"),
    [
        (r"My answer is \boxed{\frac{1}{3}}", r"\frac{1}{3}", "boxed"),
        ("Answer: 4\nAnswer: 3", "3", "phrase"),
        ("answer : $3$", "3", "phrase"),
        ("The final answer is **1,000** because it is.", "1,000", "phrase"),
        ("the answer is 3.5.", "3.5", "phrase"),
        ("<answer>$x^2$</answer>", "x^2", "answer"),
        ("we get $5$", "5", "dollars"),
        ("first $4$ and then $5$ is what we get", None, ""),
        ("x = 5", "x = 5", "whole"),
        ("I am not sure about this one", None, ""),
    ],
)
def test_formulas(text: str, value: str | None, rule: str) -> None:
    parsed = parse_formula(text)
    assert (parsed.value, parsed.rule) == (value, rule)


def test_a_parse_has_no_sentinel_that_a_target_could_equal() -> None:
    assert not re.search("None", str(boxed("none here") or ""))
    assert answer_text("").value is None
