"""Numbers, arithmetic, boxes, points, spans of time and orders."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mmrl.rewards.verifiable.parse.boxes import frame_scale, gold_boxes, parse_boxes, parse_points
from mmrl.rewards.verifiable.parse.expression import evaluate
from mmrl.rewards.verifiable.parse.numbers import (
    Number,
    find_numbers,
    gold_number,
    parse_number,
    read_number,
    same_number,
)
from mmrl.rewards.verifiable.parse.permutation import parse_order
from mmrl.rewards.verifiable.parse.spans import gold_spans, parse_spans


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("-3", -3), ("− 3", -3), ("−3", -3), ("+3", 3), (".5", 0.5), ("5.", 5), ("(3)", 3), ("3.0", 3),
        ("1,000", 1000), ("1,234,567.89", 1234567.89), ("3{,}000", 3000), ("1,00", None), ("1,2345", None),
        ("12 cm", 12), ("12cm", 12), ("12 inches", 12), ("3D", None), ("2x", None), ("1.2.3", None),
        ("1e3", 1000), ("1.5E-3", 0.0015), ("3 × 10^8", 3e8), (r"3\times10^{-2}", 0.03), ("10^3", 1000),
        (r"\frac{1}{2}", 0.5), (r"-\frac12", -0.5), (r"\dfrac{-1}{2}", -0.5), ("1/2", 0.5), ("1⁄2", 0.5),
        (r"2\frac{1}{2}", 2.5), ("2 1/2", 2.5), ("-2 1/2", -2.5), ("1/0", None), ("1e999", None),
        ("$5$", 5), ("$5", 5), ("-$5", -5), (r"\$5", 5), (r"90^\circ", 90), (r"5\text{ cm}", 5),
        ("3/4/2020", None), ("2 - 3", None), ("x^2+1", None), ("2**3", None), ("", None), ("three", None),
    ],
)  # fmt: skip
def test_whole_numbers_in_every_way_of_writing(text: str, value: float | None) -> None:
    number = read_number(text)
    assert (None if number is None else number.value) == value


@pytest.mark.parametrize(
    ("text", "value", "rule"),
    [
        ("<answer>3</answer>", 3, "whole"),
        (r"so \boxed{12\text{ cm}}", 12, "whole"),
        ("the answer is 4, not 5", 4, "phrase"),
        ("The answer is **7**.", 7, "phrase"),
        ("x = 3", 3, "phrase"),
        ("4 + 5 = 9", 9, "phrase"),
        ("There are 3 dogs.", 3, "only"),
        ("3 dogs, I repeat, 3", 3, "only"),
        ("3 dogs and 2 cats", None, ""),
        ("24.3 - 30.4", None, ""),
        ("24.3-30.4", None, ""),
        ("x^2+1", None, ""),
        ("on 3/4/2020", None, ""),
        ("R2D2", None, ""),
        ("<think>3", None, ""),
    ],
)
def test_the_number_that_a_text_answers(text: str, value: float | None, rule: str) -> None:
    parsed = parse_number(text)
    assert (None if parsed.value is None else parsed.value.value, parsed.rule) == (value, rule)


def test_percent_units_and_lists() -> None:
    assert read_number("50%") == Number(50, percent=True) and read_number(r"50\%") == read_number("50 %")
    assert read_number("12 inches") == Number(12, unit="in") == read_number("12 in")
    assert [number.value for number in find_numbers("5 in the box, -2 (3.5) and 1,000")] == [5, -2, 3.5, 1000]
    assert [number.unit for number in find_numbers("5 in the box, 6 in.")] == ["", "in"]


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("3.0", "3", True), ("50%", "0.5", True), ("50%", "50", False), ("12 mm", "12 cm", False), ("12 cm", "12", True),
        ("100005", "100000", False), ("100005.0", "100000", True), ("0", "0", True), ("-0", "0", True),
    ],
)  # fmt: skip
def test_same_number(answer: str, gold: str, same: bool) -> None:
    a, b = read_number(answer), read_number(gold)
    assert a is not None and b is not None and same_number(a, b, relative=1e-4) == same


@pytest.mark.parametrize("bad", ["x", "", None, True, float("nan"), [1]])
def test_a_gold_that_is_no_number(bad: Any) -> None:
    with pytest.raises(ValueError, match="expected a number"):
        gold_number(bad)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10^3", 1000), (r"\sqrt{4}", 2), (r"\sqrt2", math.sqrt(2)), (r"\sqrt[3]{8}", 2), (r"\frac{\pi}{2}", math.pi / 2),
        (r"2\pi", 2 * math.pi), ("2(3)", 6), ("(1+2)*3-4/2", 7), ("-2^2", -4), ("2^3^2", 512), ("1--1", 2), ("50%", 0.5),
        ("2**3", 8), ("3,000+1", 3001), (r"\frac12", 0.5), ("x", None), ("", None), ("1/0", None), ("(-8)^{1/3}", None),
        ("9^{9^{9^9}}", None), ("(" * 290, None), ("1 2", None), ("1+", None), ("(1", None), ("1" * 400, None),
    ],
)  # fmt: skip
def test_arithmetic(text: str, value: float | None) -> None:
    found = evaluate(text)
    assert found == (None if value is None else pytest.approx(value))


FENCED = (
    '```json\n[{"bbox_2d": [0, 0, 100, 100], "label": "cat"}, {"bbox_2d": [200, 200, 300, 301], "label": "dog"}]\n```'
)


@pytest.mark.parametrize(
    ("text", "boxes", "rule"),
    [
        (FENCED, [(0, 0, 100, 100, "cat"), (200, 200, 300, 301, "dog")], "json"),
        (f"[9, 9, 10, 10] or {FENCED}", [(0, 0, 100, 100, "cat"), (200, 200, 300, 301, "dog")], "json"),
        ('<answer>{"bbox_2d": [1, 2, 3, 4]}</answer>', [(1, 2, 3, 4, "")], "json"),
        ("[]", [], "json"),
        ("[0.1, 0.2, 0.5, 0.6]", [(0.1, 0.2, 0.5, 0.6, "")], "list"),
        ("box [1,2,3,4] and [5,6,7,8]", [(1, 2, 3, 4, ""), (5, 6, 7, 8, "")], "list"),
        ("[[1,2,3,4],[5,6,7,8]]", [(1, 2, 3, 4, ""), (5, 6, 7, 8, "")], "list"),
        ("[-1, 0.5, .5, 1]", [(-1, 0.5, 0.5, 1, "")], "list"),
        ("<|box_start|>[1,2,3,4]<|box_end|>", [(1, 2, 3, 4, "")], "list"),
        ("[3, 3, 1, 1]", None, ""),
        ("[1, 2, 1, 4]", None, ""),
        ('{"bbox_2d": "x"}', None, ""),
        ('{"bbox_2d": [1, 2, 3]}', None, ""),
        ("[NaN, 1, 2, 3]", None, ""),
        ("[1e400, 2, 3, 4]", None, ""),
        ("[true, 2, 3, 4]", None, ""),
        ("(0.1,0.2,0.3,0.4)", None, ""),
        ("[" * 5000, None, ""),
        ("```json [bad```", None, ""),
        ("no", None, ""),
    ],
)
def test_boxes(text: str, boxes: Any, rule: str) -> None:
    parsed = parse_boxes(text)
    found = None if parsed.value is None else [(b.x1, b.y1, b.x2, b.y2, b.label) for b in parsed.value]
    assert (found, parsed.rule) == (boxes, rule)


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ('[{"point_2d": [3, 4]}, {"point_2d": [5, 6]}]', ((3, 4), (5, 6))),
        ("it is at (3, 4.5)", ((3, 4.5),)),
        ("[-.5, 4]", ((-0.5, 4),)),
        ("3, 4", None),
        ("[3, 4, 5]", None),
    ],
)
def test_points(text: str, points: Any) -> None:
    assert parse_points(text).value == points


def test_frames() -> None:
    assert frame_scale("norm1", None, None) == (1, 1) and frame_scale("norm1000", None, None) == (1e-3, 1e-3)
    assert frame_scale("pixel_original", (200, 100), None) == (1 / 200, 1 / 100)
    assert frame_scale("pixel_resized", (200, 100), (50, 10)) == (1 / 50, 1 / 10)
    with pytest.raises(ValueError, match=r"frame pixel_resized needs meta\['resized'\] = \(width, height\)"):
        frame_scale("pixel_resized", (200, 100), None)


@pytest.mark.parametrize("bad", [[3, 3, 1, 1], [1, 2, 3], "x", None, [[1, 2, 3, 4], [1, 1, 1, 1]], {"bbox_2d": [1]}])
def test_golds_that_are_no_boxes(bad: Any) -> None:
    with pytest.raises(ValueError, match="expected boxes"):
        gold_boxes(bad)


@pytest.mark.parametrize(
    ("text", "spans", "rule"),
    [
        ("The event happens in the 24.3 - 30.4 seconds", ((24.3, 30.4),), "pair"),
        ("from 3 to 7", ((3, 7),), "pair"),
        ("between 4 and 9 seconds", ((4, 9),), "pair"),
        ("3s–5s", ((3, 5),), "pair"),
        ("0:10 - 0:25", ((10, 25),), "pair"),
        ("1:02:03 — 1:02:09.5", ((3723, 3729.5),), "pair"),
        ("30 - 20", ((30, 20),), "pair"),
        ("20.8 - 30.0 seconds, 1 - 2", ((20.8, 30), (1, 2)), "pair"),
        ("starts at 12.5 seconds.\nIt ends at 14 seconds.", ((12.5, 14),), "start_end"),
        ("[12.5, 14]", ((12.5, 14),), "json"),
        ('[{"start": "0:10", "end": 12}, [13, 14]]', ((10, 12), (13, 14)), "json"),
        ("[]", (), "json"),
        ("None.", (), "none"),
        ("1:75 - 2:00", None, ""),
        ("nothing", None, ""),
        ("about 5 seconds", None, ""),
        ("<think>3 - 4", None, ""),
    ],
)
def test_spans(text: str, spans: Any, rule: str) -> None:
    parsed = parse_spans(text)
    assert (parsed.value, parsed.rule) == (spans, rule)


@pytest.mark.parametrize("bad", [[5, 3], "x", None, [1], [[1, 2], [3]], [-1, 2], {"start": 1}])
def test_golds_that_are_no_spans(bad: Any) -> None:
    with pytest.raises(ValueError, match="start first"):
        gold_spans(bad)


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("3,1,2", (3, 1, 2)), ("[3, 1, 2]", (3, 1, 2)), ("3 1 2", (3, 1, 2)), ("3->1->2.", (3, 1, 2)), ("3-1-2", (3, 1, 2)),
        (r"<think>1,2,3</think> \boxed{1, 3 ,2}", (1, 3, 2)), ("The order is [3,1,2].", (3, 1, 2)), ("1,1,2", (1, 1, 2)),
        ("a,b", None), ("1, 2 and 3", None), ("it is 3, 1, 2", None), ("", None),
    ],
)  # fmt: skip
def test_orders(text: str, order: Any) -> None:
    assert parse_order(text).value == order
