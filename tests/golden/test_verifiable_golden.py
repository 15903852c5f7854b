"""Verifiable rewards against numbers computed by other implementations; every case that differs is named with its reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmrl.components import build
from mmrl.reward import RewardSet
from mmrl.rewards.verifiable.edits import similarity
from mmrl.rewards.verifiable.geometry import iou, temporal_iou
from mmrl.rewards.verifiable.length import cosine_value
from mmrl.rewards.verifiable.mathematics import MathReward
from mmrl.rewards.verifiable.parse.boxes import Box, parse_boxes
from mmrl.rewards.verifiable.parse.choice import parse_choice
from mmrl.rewards.verifiable.parse.format import follows
from mmrl.rewards.verifiable.parse.region import answer_text, boxed, normalise
from mmrl.rewards.verifiable.parse.spans import parse_spans
from mmrl.rewards.verifiable.repetition import longest_run
from mmrl.rollout import OK, Prompt, Sample

DATA = Path(__file__).parent / "data"
FAILS = "fails"


def cases(file: str, fn: str) -> list[tuple[Any, Any]]:
    found = [c for c in json.loads((DATA / f"{file}.json").read_text())["cases"] if c["fn"].startswith(fn)]
    assert found, fn
    return [(case["inputs"], case["outputs"]) for case in found]


def score(name: str, text: str, target: Any, **options: Any) -> Any:
    scores = RewardSet({"r": (build("reward", {"name": name, **options}), 1.0)}).score(
        [Sample(Prompt("p", "q", target=target), text=text)]
    )
    return float(scores.values[0, 0]) if scores.status[0, 0] == OK else FAILS


def untagged(gold: str) -> str:
    """The originals keep their truths in answer tags."""
    return answer_text(gold).value or ""


MATH = {
    # mathruler: fractions only when reduced, no percent, roots, powers or sets
    ("mathruler", "2/4", "1/2"): 1, ("mathruler", "50%", "0.5"): 1, ("mathruler", r"\sqrt{4}", "2"): 1,
    ("mathruler", r"\{1,2\}", r"\{2,1\}"): 1, ("mathruler", "10^3", "1000"): 1,
    # math-verify reads 1e3 as a product with e
    ("math_verify", "1e3", "1000"): 1,
    # TRL: a line with an equation is no formula to it; a bare B is an unreadable truth; two boxes are none
    ("trl", "so x = 5", "$5$"): 1, ("trl", r"\boxed{B}", "B"): 1, ("trl", r"first \boxed{1} then \boxed{2}", "$2$"): 1,
    # EasyR1: "no box" is the text "None", which equals a truth "None"; blanks in a block fail its pattern
    ("easyr1", "<think>a</think> 3", "None"): 0, ("easyr1", "<answer>\n3\n</answer>", "3"): 1,
    ("easyr1", "< think >a< / think >\\boxed{3}", "3"): 1,
    # DAPO wants "Answer:"; wrong is -1 there and 0 here
    ("dapo", "3", "3"): 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def judge() -> Iterator[MathReward]:
    pytest.importorskip("math_verify")
    reward = build("reward", {"name": "math", "limit": 30.0})
    yield reward
    if reward._pool is not None:
        reward._pool.close()


@pytest.mark.parametrize(
    "fn", ["mathruler.grade_answer", "math_verify.verify", "trl accuracy", "easyr1.math", "easyr1.r1v", "dapo.accuracy"]
)
def test_math(fn: str, judge: MathReward) -> None:
    whole = fn.startswith(("mathruler", "math_verify"))
    found, wanted, known = {}, {}, set()
    for (text, truth), output in cases("verifiable__math_answers", fn):
        key = (fn.replace(".", " ").split()[0], text, truth)
        answer = f"<answer>{text}</answer>" if whole else text
        found[key] = judge.score([Sample(Prompt("p", "q", target=truth), text=answer)])[0]
        raw = output["accuracy"] if isinstance(output, dict) else output
        wanted[key] = MATH.get(key, max(0.0, float(raw or 0)))
        known |= {key} & MATH.keys()
    assert found == wanted
    assert known == {key for key in MATH if any(key == seen for seen in found)}


def test_boxes_in_text() -> None:
    """Differs: the text "None" for no box is None here; "\\boxed {" and "\\fbox" are boxes here."""
    other = {r"\boxed {3}": "3", r"\fbox{3}": "3"}
    for (text,), output in cases("verifiable__math_answers", "mathruler.extract"):
        assert boxed(text) == other.get(text, None if output == "None" else output)


def test_overlong() -> None:
    for (length, limit, buffer), output in cases("verifiable__math_answers", "soft_overlong"):
        sample = Sample(Prompt("p", "q"), text="x", meta={"tokens": length})
        assert build("reward", {"name": "overlong", "limit": limit, "buffer": buffer}).score([sample]) == [
            pytest.approx(output)
        ]


def test_choices() -> None:
    """Differs: brackets are read; "option a" and several letters are no choice; the last answer block counts, not the first."""
    letters = {"(C)": "C", "The correct choice is (B).": "B", "option a": None, "A B C D": None, "D;A": None}
    for (text,), output in cases("verifiable__vlm_r1", "extract_choice"):
        assert parse_choice(text).value == letters.get(text, output), text
    worth = {"<answer>A</answer><answer>B</answer>": 1.0, "<answer>(D)</answer>": 1.0}
    for (text, truth), output in cases("verifiable__vlm_r1", "mcq_reward"):
        assert score("choice", text, untagged(truth)) == worth.get(text, output), text


def test_yes_and_no() -> None:
    """Differs: "no" in "know" and "yes" in "yesterday" are no answers."""
    worth = {"<answer>I do not know</answer>": 0.0, "yesterday": 0.0}
    for (text, truth), output in cases("verifiable__vlm_r1", "yes_no_reward"):
        assert score("yes_no", text, untagged(truth)) == worth.get(text, output), text


def test_words() -> None:
    """Differs: blanks inside a text never count; a truth of numbers or words earns no share for a similar text."""
    for (text,), output in cases("verifiable__vlm_r1", "clean_text"):
        assert normalise(untagged(text)) == " ".join(output.split())
    for (text, truth), output in cases("verifiable__vlm_r1", "all_match"):
        assert score("exact", text, truth) == (1.0 if text == "red  car" else output)
    for (text, truth), output in cases("verifiable__vlm_r1", "default_accuracy"):
        if any(letter.isdigit() for letter in truth):
            continue  # a fuzzy ratio over mathematics; the math cases are in test_math
        assert score("exact", text, untagged(truth)) == float(output == 1.0), text


def test_numbers() -> None:
    """Differs: a text without number is 0 and not an exception; 1,000 is a number."""
    for (text, truth), output in cases("verifiable__vlm_r1", "numeric_reward"):
        assert score("number", text, truth) == (1.0 if text == "1,000" else output or 0.0)


def test_box_iou() -> None:
    """Differs: coordinates are real numbers here, and pixels with an inclusive edge there."""
    other = {(0, 0, 1, 1): 1.0, (0.0, 0.0, 0.5, 0.5): 1.0, (10, 20, 110, 220): 14450 / 20000}
    for (a, b), output in cases("verifiable__vlm_r1", "iou"):
        assert iou(Box(*a), Box(*b)) == pytest.approx(other.get(tuple(a), output), abs=1e-9)
    for (a, b), output in cases("grounding__eval", "refcoco.compute_iou"):
        assert iou(Box(*a), Box(*b)) == pytest.approx(output)
    for (gold, found), output in cases("grounding__eval", "refcoco.compute_accuracy"):
        assert (iou(Box(*gold), Box(*found)) >= 0.5) == output
    for (gold, found), output in cases("grounding__eval", "refcoco.compute_center"):
        x, y = Box(*found).centre if found[2] else (-1, -1)  # no answer there is a box of zeros
        if gold[2]:
            assert (score("point_in_box", f"[{x}, {y}]", gold) == 1) == output


def test_boxes_of_text() -> None:
    """Differs: no box is None and not four zeros; the last of several counts; blanks, signs and ".5" are read."""
    other = {
        "box [1,2,3,4] and [5,6,7,8]": [5, 6, 7, 8], "[-1, 0.5, .5, 1]": [-1, 0.5, 0.5, 1], "[ 0 , 0 , 1 , 1 ]": [0, 0, 1, 1],
    }  # fmt: skip
    for (text,), output in cases("grounding__eval", "refcoco.parse"):
        boxes = parse_boxes(text).value
        found = [boxes[-1].x1, boxes[-1].y1, boxes[-1].x2, boxes[-1].y2] if boxes else [0, 0, 0, 0]
        assert found == other.get(text, output), text


def test_detection_orders_replies_alike() -> None:
    """Differs in the number (0.7 mean IoU + 0.3 completeness there; matched IoU over the larger number of boxes here)."""
    pairs = []
    for (text, truth), output in cases("verifiable__vlm_r1", "detection_score"):
        gold = json.loads(truth.strip("`").removeprefix("json"))
        found = score("bbox_iou", text, gold, boxes="matched", labels=True)
        assert (found == 0) == (output == 0)
        assert (found == 1) == (output == 1)
        pairs.append((output, found))
    full, half, extra, wrong = (found for _, found in pairs[:4])
    assert (full, half, extra) == (1, 0.5, pytest.approx(2 / 3)) and 0 < wrong < half


def test_times() -> None:
    """Differs: the order of a span is kept; "starts at ... ends at" and "between ... and" are read; all spans are kept."""
    other = {
        "starts at 5, ends at 9": [[5, 9]], "between 4 and 9 seconds": [[4, 9]],
        "A specific example is : 20.8 - 30.0 seconds 1 - 2": [[20.8, 30], [1, 2]],
    }  # fmt: skip
    for (text,), output in cases("grounding__eval", "charades.extract"):
        spans = parse_spans(text).value or ()
        assert [sorted(span) for span in spans] == other.get(text, output), text
    for (a, b), output in cases("grounding__eval", "charades.iou"):
        assert temporal_iou([tuple(a)], [tuple(b)]) == pytest.approx(output)
    for inputs, output in [(c["inputs"], c["outputs"]) for c in json.loads((DATA / "grounding__eval.json").read_text())["cases"] if c["fn"].startswith("_temporal")]:  # fmt: skip
        found = [
            score("temporal_iou", text, json.loads(key.split(">>>")[2]))
            for line in inputs
            for key, text in line.items()
        ]
        assert 100 * sum(found) / len(found) == pytest.approx(output["mIOU"])
        assert [100 * sum(v >= t / 10 for v in found) / len(found) for t in (3, 5, 7)] == [
            output[f"IOU@{t}"] for t in (3, 5, 7)
        ]


def test_repetition() -> None:
    for (text,), output in cases("verifiable__vlm_r1", "repetition_reward"):
        mode = "items" if "```json" in text else "words"
        assert score("repetition", text, None, mode=mode) == pytest.approx(output)
    for inputs, output in cases("verifiable__visual_jigsaw", "has_excessive"):
        assert (longest_run(inputs["text"], inputs["min_len"]) > inputs["max_run"]) == output


def test_formats() -> None:
    """Differs: a line break at the end is allowed; a block inside a block, or two answers, are not."""
    other = {
        "<think>a</think><answer>b</answer>\n": 1.0, "<think>a</think><answer>b</answer><answer>c</answer>": 0.0,
        "<think>a<think>b</think></think><answer>c</answer>": 0.0,
    }  # fmt: skip
    for (text,), output in cases("verifiable__vlm_r1", "format_reward"):
        assert score("format", text, None) == other.get(text, output), text
    for (text,), output in cases("verifiable__visual_jigsaw", "check_format"):
        assert follows(text, "think_boxed") == output, text
    for (text, _), output in cases("verifiable__math_answers", "easyr1.math"):
        assert score("format", text, None, form="think_boxed", repair_tags=True) == output["format"]
    for (text, _), output in cases("verifiable__math_answers", "easyr1.r1v"):
        assert score("format", text, None) == output["format"]


def test_cosine() -> None:
    """Differs: the length is clamped at the longest, and a wrong answer is worth -0.5 to 0 (there, an overwritten flag)."""
    for inputs, output in cases("verifiable__vlm_r1", "cosine_reward"):
        right = cosine_value(inputs["num_tokens"], 1024, 1.0, 0.5)
        assert right == pytest.approx(0.5 if inputs["num_tokens"] > 1024 else output)


def test_text_similarity() -> None:
    for (golds, text), output in cases("verifiable__visual_jigsaw", "anls"):
        assert max(similarity(text, gold, 0.5) for gold in golds) == pytest.approx(output)


def test_relaxed() -> None:
    """Differs: 0.0 is 0, and 1,000 is 1000."""
    other = {("0.0", "0"): True, ("1,000", "1000"): True}
    for (gold, text), output in cases("verifiable__visual_jigsaw", "relaxed_correctness"):
        assert score("relaxed_number", text, gold) == other.get((gold, text), output), text


RECIPE: dict[str, Any] = {"form": ({"name": "format", "form": "think_boxed"}, 0.2)}
GATED = {"require": "think_boxed"}


def total(text: str, target: Any, accuracy: dict[str, Any]) -> float:
    """Visual Jigsaw as a weighted sum: 0.2 for the form, accuracy only with the form, repeated lines cost where that holds."""
    spec = {**RECIPE, "accuracy": ({**accuracy, **GATED}, 1.0), "lines": ({"name": "repetition", "mode": "lines"}, 1.0)}
    rewards = RewardSet({name: (build("reward", options), weight) for name, (options, weight) in spec.items()})
    return float(rewards.total(rewards.score([Sample(Prompt("p", "q", target=target), text=text)]), [0])[0])


def test_visual_jigsaw_as_a_weighted_sum() -> None:
    jigsaw = {"name": "permutation", "mode": "five_or_more"}
    for (text, gold), output in cases("verifiable__visual_jigsaw", "compute_score"):
        if isinstance(gold, list):
            assert total(text, gold, jigsaw) == pytest.approx(output["score"]), text
    policy = json.loads((DATA / "visual_jigsaw__rewards.json").read_text())
    for (text, gold), output in zip(policy["inputs"]["cases"], policy["outputs"]["cases"], strict=True):
        assert total(text, gold, jigsaw) == pytest.approx(output["score"], abs=1e-8), text
    for (text, gold), output in zip(policy["inputs"]["nothink"], policy["outputs"]["nothink"], strict=True):
        assert score("permutation", text, gold, mode="five_or_more") == pytest.approx(output["score"], abs=1e-8)
    for fn, name in [
        ("compute_score_exact", "exact"),
        ("compute_score_anls", "anls"),
        ("compute_score_relaxed", "relaxed_number"),
    ]:
        for (text, gold), output in cases("verifiable__visual_jigsaw", fn):
            assert total(text, gold, {"name": name}) == pytest.approx(output["score"]), text
