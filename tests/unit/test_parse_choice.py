"""Multiple choice, and yes or no."""

from __future__ import annotations

import pytest

from mmrl.rewards.verifiable.parse.choice import parse_choice
from mmrl.rewards.verifiable.parse.yes_no import parse_yes_no


@pytest.mark.parametrize(
    ("text", "letter", "rule"),
    [
        ("A", "A", "letter"),
        ("b", "B", "letter"),
        ("B.", "B", "letter"),
        ("(D)", "D", "letter"),
        ("**B**", "B", "letter"),
        ("[c]:", "C", "letter"),
        ("$B$", "B", "letter"),
        (r"\boxed{D}", "D", "letter"),
        (r"\boxed{\text{D}}", "D", "letter"),
        (r"Therefore it is A, I mean \boxed{B}.", "B", "letter"),
        ("<think>A or B?</think><answer> b. </answer>", "B", "letter"),
        ("The answer is D.", "D", "phrase"),
        ("answer: b", "B", "phrase"),
        ("**Answer:** C", "C", "phrase"),
        ("The correct choice is (B).", "B", "phrase"),
        ("The answer is A. No: the answer is B.", "B", "phrase"),
        ("I think A or B, but the answer is B.", "B", "phrase"),
        ("The answer is A because it is red", "A", "phrase"),
        ("The answer is B, a red car.", "B", "phrase"),
        ("The answer is B, not C", "B", "phrase"),
        ("B) text", "B", "line"),
        ("D: text", "D", "line"),
        ("**B.** four", "B", "line"),
        ("(b) a cat", "B", "line"),
        ("I think\nC. four", "C", "line"),
        ("Because of that I choose C!", "C", "capital"),
        ("A cat. B", "B", "capital"),
        ("C, because A is wrong.", "C", "capital"),
        ("", None, ""),
        ("Apple", None, ""),
        ("A B C D", None, ""),
        ("D;A", None, ""),
        ("option a", None, ""),
        ("The answer is a dog", None, ""),
        ("The answer is B or C", None, ""),
        ("The answer is (B) or (C)", None, ""),
        ("The answer is A, B", None, ""),
        ("The answer is not B", None, ""),
        ("It isn't B", None, ""),
        ("B. cat\nC. dog", None, ""),
        ("I am sure", None, ""),
        ("<answer>Z</answer>", None, ""),
        ("<think>A", None, ""),
        (r"\boxed{12}, answer is B", None, ""),
    ],
)
def test_letters(text: str, letter: str | None, rule: str) -> None:
    parsed = parse_choice(text)
    assert (parsed.value, parsed.rule) == (letter, rule)


@pytest.mark.parametrize(
    ("text", "letter", "rule"),
    [
        ("a red car.", "B", "option"),
        ("There is a red car here", "B", "contained"),
        ("There is a car here", "A", "contained"),
        ("a car, or a red car", None, ""),
        ("it reads 4", "C", "contained"),
        ("it reads 4.5", None, ""),
        ("it reads 14", None, ""),
        ("cars", None, ""),
        ("D", None, ""),
    ],
)
def test_option_texts(text: str, letter: str | None, rule: str) -> None:
    parsed = parse_choice(text, letters="ABC", options=["car", "A red car", "4"])
    assert (parsed.value, parsed.rule) == (letter, rule)


def test_more_options_than_letters() -> None:
    with pytest.raises(ValueError, match="3 options, but only 2 letters"):
        parse_choice("A", "AB", ["x", "y", "z"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<answer>Yes</answer>", "yes"),
        ("NO.", "no"),
        ("Yes, there is no dog.", "yes"),
        ("No: yes would be wrong", "no"),
        ("There is no dog", "no"),
        ("I do not know", None),
        ("yesterday", None),
        ("a casino", None),
        ("maybe", None),
        ("no-one knows", None),
        ("it is yes or no", None),
        ("", None),
    ],
)
def test_yes_and_no_are_whole_words(text: str, value: str | None) -> None:
    assert parse_yes_no(text).value == value
