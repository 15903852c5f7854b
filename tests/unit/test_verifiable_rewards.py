"""The rewards for text answers as a run meets them: scores, data errors, skips, and what is logged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from mmrl.components import build
from mmrl.errors import UserError
from mmrl.reward import Graded, RewardSet, graded
from mmrl.rewards.verifiable import math_pool
from mmrl.rollout import FAILED, OK, SKIPPED, Prompt, Sample

GOOD = "<think>a</think>"


def said(text: str | None, target: Any = None, meta: dict[str, Any] | None = None, **prompt_meta: Any) -> Sample:
    return Sample(Prompt("p", "q", target=target, meta=prompt_meta), text=text, meta=dict(meta or {}))


def one(name: str, sample: Sample, **options: Any) -> float:
    """The score of one sample. Raises AssertionError where it failed or was skipped."""
    scores = RewardSet({"r": (build("reward", {"name": name, **options}), 1.0)}).score([sample])
    assert scores.status[0, 0] == OK, scores.messages
    return float(scores.values[0, 0])


def failure(name: str, sample: Sample, **options: Any) -> str:
    scores = RewardSet({"r": (build("reward", {"name": name, **options}), 1.0)}).score([sample])
    assert scores.status[0, 0] == FAILED
    return scores.messages[0]


@pytest.mark.parametrize(
    ("name", "options", "target", "worth"),
    [
        ("exact", {}, "Red car", {"red  car.": 1, "<answer>Red Car</answer>": 1, "red cars": 0, "know": 0, "": 0, "None": 0}),
        ("exact", {}, ["cat", "kitten"], {"Kitten!": 1, "dog": 0}),
        ("exact", {}, "?", {"?": 1, "!": 0, "": 0}),
        ("exact", {}, 3, {"3": 1, "3.0": 0}),
        ("exact", {"case_sensitive": True}, "Cat", {"Cat": 1, "cat": 0}),
        ("yes_no", {}, "yes", {"Yes.": 1, "no": 0, "yesterday": 0, "maybe": 0, "": 0}),
        ("yes_no", {}, False, {"No, it is not": 1, "I do not know": 0}),
        ("choice", {}, "D", {"(D)": 1, "d": 1, r"\boxed{D}": 1, "C": 0, "": 0, "A B C D": 0}),
        ("choice", {}, "D. four", {"<answer>(D)</answer>": 1}),
        ("number", {}, "1,000", {"1000": 1, "1e3": 1, "1001": 0, "x": 0, "": 0, "1,00": 0}),
        ("number", {"relative": 0.1}, 10.0, {"10.9": 1, "11.1": 0}),
        ("relaxed_number", {}, "10", {"10.4": 1, "10.6": 0, "9.5": 1, "cat": 0}),
        ("relaxed_number", {}, "10%", {"0.1": 1, "10": 0}),
        ("relaxed_number", {}, "abc", {"ABC": 1, "abd": 0}),
        ("relaxed_number", {}, "0", {"0.0": 1, "0.01": 0}),
        ("count", {}, 3, {"3": 1, "there are 3": 1, "2": 0, "3.5": 0, "-3": 0}),
        ("count", {"mode": "relative"}, 4, {"4": 1, "3": 0.75, "9": 0, "-1": 0}),
        ("count", {"mode": "relative"}, 0, {"0": 1, "1": 0, "0.5": 0.5}),
        ("count", {"mode": "relative"}, [4, 2], {"4, 2": 1, "3 and 2": 0.875, "4": 0, "4, 2, 1": 0}),
        ("bbox_iou", {}, [0, 0, 10, 10], {"[0,0,10,10]": 1, "[5,5,15,15]": 1 / 7, "[5,5,15,15] or [0,0,10,10]": 1, "[9,9,1,1]": 0, "no": 0, "[]": 0}),
        ("bbox_iou", {"threshold": 0.5}, [0, 0, 10, 10], {"[0,0,10,9]": 1, "[0,0,10,5]": 1, "[0,0,10,4]": 0}),
        ("bbox_iou", {"measure": "giou"}, [0, 0, 1, 1], {"[0,0,1,1]": 1, "[2,0,3,1]": 1 / 3, "no": 0}),
        ("bbox_iou", {"boxes": "matched"}, [[0, 0, 1, 1], [2, 2, 3, 3]], {"[[2,2,3,3],[0,0,1,1]]": 1, "[0,0,1,1]": 0.5}),
        ("bbox_iou", {"boxes": "matched"}, [], {"[]": 1, "[0,0,1,1]": 0}),
        ("point_in_box", {}, [0, 0, 2, 2], {"[1, 1]": 1, "(2, 2)": 1, "[3, 1]": 0, "x": 0}),
        ("point_in_box", {"sigma": 0.5}, [0, 0, 2, 2], {"[1, 1]": 1, "[3, 1]": np.exp(-0.5), "x": 0}),
        ("temporal_iou", {}, [0.0, 10.0], {"0 - 10": 1, "5 - 10": 0.5, "10 - 5": 0.5, "nothing": 0, "1-2 5-10": 0.5}),
        ("temporal_iou", {"reversed_span": "zero"}, [0, 10], {"10 - 5": 0, "5 - 10": 0.5}),
        ("temporal_iou", {}, [[0, 1], [2, 3]], {"[[0, 1], [2, 3]]": 1, "0 - 3": 2 / 3}),
        ("temporal_iou", {}, [], {"[]": 1, "none": 1, "1 - 2": 0}),
        ("temporal_iou", {"threshold": 0.5}, [0, 10], {"5 - 10": 1, "6 - 10": 0}),
        ("permutation", {}, [2, 1, 3], {"2,1,3": 1, "1,2,3": 0, "2,1": 0, "2,2,3": 0, "a": 0}),
        ("permutation", {"mode": "places"}, [1, 2, 3, 4], {"1,2,4,3": 0.5, "1,2,4,4": 0, "4,3,2,1": 0}),
        ("permutation", {"mode": "displacement"}, "1,2,3", {"1,3,2": 0.5, "3,2,1": 0}),
        ("permutation", {"mode": "five_or_more"}, [1, 2, 3, 4, 5], {"2,1,3,4,5": 0.12}),
        ("permutation", {"mode": "five_or_more"}, [1, 2, 3, 4], {"2,1,3,4": 0}),
        ("permutation", {"mode": "neighbours"}, [1, 2, 3], {"3,1,2": 0.5}),
        ("permutation", {"mode": "neighbours", "columns": 2}, [1, 2, 3, 4], {"3,4,1,2": 0.5}),
        ("ocr_edit", {}, "hello", {"hallo": 0.8, "Hello": 1, "xyz": 0, "": 0}),
        ("anls", {}, ["abc", "hello"], {"hallo": 0.8, "he": 0, "ABC": 1}),
        ("anls", {}, "12", {"13": 0.5}),
    ],
)  # fmt: skip
def test_worth(name: str, options: dict[str, Any], target: Any, worth: dict[str, float]) -> None:
    found = {text: one(name, said(text, target), **options) for text in worth}
    assert found == pytest.approx(worth, abs=1e-9)
    again = {text: one(name, said(f"<think>1 2 A yes [1, 2, 3, 4]</think>{text}", target), **options) for text in worth}
    assert again == found


@pytest.mark.parametrize(
    ("name", "options", "target", "message"),
    [
        ("exact", {}, "", "expected a text"),
        ("yes_no", {}, "maybe", "expected yes or no"),
        ("choice", {}, "Z", "expected one of the letters"),
        ("choice", {}, 2, "expected one of the letters"),
        ("number", {}, "many", "expected a number"),
        ("relaxed_number", {}, [1], "expected a number"),
        ("count", {}, [], "empty list"),
        ("bbox_iou", {}, [3, 3, 1, 1], "expected boxes"),
        ("bbox_iou", {}, [[0, 0, 1, 1], [1, 1, 2, 2]], "has 2 boxes; expected one"),
        ("bbox_iou", {"target_frame": "norm1"}, [0, 0, 1, 1], r"needs meta\['size'\]"),
        ("point_in_box", {}, [], "expected a box"),
        ("temporal_iou", {}, [5, 3], "start first"),
        ("permutation", {}, [1, 1], "two different numbers"),
        ("permutation", {}, [1], "two different numbers"),
        ("permutation", {"mode": "neighbours", "columns": 2}, [1, 2, 3], "do not fill rows of 2"),
        ("anls", {}, [], "expected a text"),
        ("math", {"engine": "numbers"}, "x^2", "cannot read"),
        ("math", {"engine": "numbers"}, "", "expected a formula"),
        ("exact", {}, {"answer": "x"}, "set target_key"),
        ("exact", {"target_key": "answer"}, "x", "no mapping"),
    ],
)
def test_a_target_that_cannot_be_read_fails_the_sample(
    name: str, options: dict[str, Any], target: Any, message: str
) -> None:
    text = "2,1,3" if options.get("columns") else "<answer>1</answer>"
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(failure(name, said(text, target), **options))


def test_a_target_key_takes_one_entry_and_skips_where_there_is_none() -> None:
    reward = build("reward", {"name": "choice", "target_key": "letter"})
    samples = [
        said("B", {"letter": "B"}),
        said("B", {"span": [1, 2]}),
        said("B", {"letter": None}),
        said(None, {"letter": "B"}),
        said("B"),
    ]
    scores = RewardSet({"r": (reward, 1.0)}).score(samples)
    assert scores.status[:, 0].tolist() == [OK, SKIPPED, SKIPPED, SKIPPED, SKIPPED]


def test_options_come_from_the_target_or_the_prompt() -> None:
    options = ["a red car", "a bus"]
    assert one("choice", said("the bus is a bus", {"answer": "B", "options": options}), target_key="answer") == 1
    assert one("choice", said("a red car.", "A", options=dict(zip("AB", options, strict=True)))) == 1
    assert "one of the letters AB" in failure("choice", said("C", "C", options=options))
    assert "named X, Y; expected A, B" in failure("choice", said("A", "A", options={"X": "1", "Y": "2"}))


def test_frames_are_converted_before_scoring() -> None:
    half = said("[0, 0, 500, 1000]", [0, 0, 320, 480], size=(640, 480))
    assert one("bbox_iou", half, frame="norm1000", target_frame="pixel_original") == pytest.approx(1)
    seen = said("[0, 0, 14, 28]", [0, 0, 320, 480], {"resized": (28, 28)}, size=(640, 480))
    assert one("bbox_iou", seen, frame="pixel_resized", target_frame="pixel_original") == pytest.approx(1)
    assert one("point_in_box", said("[250, 500]", [0, 0, 0.5, 1.0]), frame="norm1000", target_frame="norm1") == 1


def test_labels_must_agree() -> None:
    target = [{"bbox_2d": [0, 0, 1, 1], "label": "cat"}, {"bbox_2d": [2, 2, 3, 3], "label": "dog"}]
    text = '[{"bbox_2d": [0, 0, 1, 1], "label": "Cat"}, {"bbox_2d": [2, 2, 3, 3], "label": "cat"}]'
    assert one("bbox_iou", said(text, target), boxes="matched") == 1
    assert one("bbox_iou", said(text, target), boxes="matched", labels=True) == 0.5


def test_a_required_form_gates_and_is_logged() -> None:
    gated = RewardSet({"acc": (build("reward", {"name": "exact", "require": "think_boxed"}), 1.0)})
    samples = [said(f"{GOOD}\\boxed{{cat}}", "cat"), said("cat", "cat"), said(f"{GOOD}\\boxed{{dog}}", "cat")]
    assert gated.score(samples).values[:, 0].tolist() == [1, 0, 0]
    assert graded(samples) == {"acc": {"boxed_untagged": 2, "form": 1}}


def test_how_an_answer_was_read_is_left_in_the_sample() -> None:
    rewards = RewardSet({name: (build("reward", {"name": name}), 1.0) for name in ("choice", "format")})
    samples = [said("<answer>B</answer>", "B"), said("hm", "B"), said("<think>B", "B"), said("(B) x", "B")]
    values = rewards.score(samples).values
    assert values.tolist() == [[1, 0], [0, 0], [0, 0], [1, 0]]
    words = ["letter", "unparsed", "truncated", "line_untagged"]
    assert [sample.meta["graded"] for sample in samples] == [{"choice": word} for word in words]
    assert graded(samples) == {"choice": dict.fromkeys(words, 1)}
    assert Graded(0.5, "x") == 0.5 and Graded(0.5, "x").how == "x"


def test_reasoning_that_the_template_opens() -> None:
    assert one("exact", said("hm</think>cat", "cat"), opened=True) == 1
    assert one("exact", said("cat", "cat"), opened=True) == 0
    assert one("format", said("hm</think><answer>cat</answer>"), opened=True) == 1
    assert one("exact", said("< think >a< / think >cat", "cat"), repair_tags=True) == 1


@pytest.mark.parametrize("options", [{"form": "regex"}, {"pattern": "x"}, {"form": "regex", "pattern": "("}])
def test_format_options_that_do_not_fit(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="pattern"):
        build("reward", {"name": "format", **options})


def test_lengths() -> None:
    assert [one("overlong", said("x", meta={"tokens": n}), limit=100, buffer=20) for n in (80, 90, 100, 500)] == [
        0,
        -0.5,
        -1,
        -1,
    ]
    assert [one("overlong", said("x", meta={"tokens": n}), limit=100) for n in (100, 101)] == [0, -1]
    assert "expected meta['tokens']" in failure("overlong", said("x"), limit=100)
    with pytest.raises(ValidationError, match="more than the limit"):
        build("reward", {"name": "overlong", "limit": 10, "buffer": 20})


def test_cosine_length_asks_another_reward() -> None:
    options = {"of": {"name": "exact"}, "longest": 100}
    worth = [
        one("cosine_length", said(text, "cat", {"tokens": n}), **options)
        for text in ("cat", "dog")
        for n in (0, 50, 100, 200)
    ]
    assert worth == pytest.approx([1, 0.75, 0.5, 0.5, -0.5, -0.25, 0, 0])
    reward = build("reward", {"name": "cosine_length", **options})
    assert reward.model_dump(mode="json")["of"] == options["of"]
    assert reward.limits() == (-0.5, 1.0) and reward.inputs() == ("text", "target")
    scores = RewardSet({"r": (reward, 1.0)}).score([said("cat", None, {"tokens": 1}), said("cat", "cat")])
    assert scores.status[:, 0].tolist() == [SKIPPED, FAILED] and "meta['tokens']" in scores.messages[0]
    with pytest.raises(ValidationError, match="expected a reward"):
        build("reward", {"name": "cosine_length", "of": {"engine": "numbers"}, "longest": 100})


def test_repetition() -> None:
    line = "one two three four five six seven eight"
    assert one("repetition", said("a b c d e f " * 4)) == pytest.approx(-13 / 19)
    assert one("repetition", said("[[1,2],[1,2],[3,4],[1, 2]]"), mode="items") == -0.5
    assert one("repetition", said("no list"), mode="items") == 0
    assert [one("repetition", said("\n".join([line] * n)), mode="lines") for n in (3, 4)] == [0, -0.5]
    assert one("repetition", said("\n".join([line, line, "x", line, line])), mode="lines") == 0


def test_math_by_numbers() -> None:
    cases = {
        r"\boxed{\frac12}": 1,
        "0.5": 1,
        r"the answer is \frac{2}{4}.": 1,
        r"\sqrt{1/4}": 1,
        "50%": 1,
        "0.6": 0,
        "x": 0,
        "": 0,
    }
    assert {text: one("math", said(text, "1/2"), engine="numbers") for text in cases} == cases
    assert one("math", said("100005", "100000"), engine="numbers") == 0
    assert one("math", said("3.14159", r"\pi"), engine="numbers") == 0


def test_math_without_math_verify_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_pool, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'mmrl\[math\]'.*engine: numbers"):
        build("reward", {"name": "math"}).setup("cpu")
