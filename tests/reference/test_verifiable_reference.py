"""Geometry, edit distance, orders, lengths and repetition against loops from their formulas, in float64."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest

from mmrl.rewards.verifiable.edits import edit_distance, similarity
from mmrl.rewards.verifiable.geometry import distance_in_boxes, giou, iou, matched_mean, temporal_iou
from mmrl.rewards.verifiable.length import cosine_value, overlong_penalty
from mmrl.rewards.verifiable.numeric import count_credit
from mmrl.rewards.verifiable.orders import order_credit
from mmrl.rewards.verifiable.parse.boxes import Box
from mmrl.rewards.verifiable.repetition import longest_run, repeated_ngrams


def integer_box(rng: random.Random) -> Box:
    x1, y1 = rng.randrange(8), rng.randrange(8)
    return Box(x1, y1, x1 + rng.randrange(1, 6), y1 + rng.randrange(1, 6))


def cells(box: Box) -> set[tuple[int, int]]:
    return {(x, y) for x in range(int(box.x1), int(box.x2)) for y in range(int(box.y1), int(box.y2))}


@pytest.mark.parametrize("seed", range(200))
def test_iou_and_giou_by_counting_cells(seed: int) -> None:
    rng = random.Random(seed)
    a, b = integer_box(rng), integer_box(rng)
    both, either = len(cells(a) & cells(b)), len(cells(a) | cells(b))
    hull = len(cells(Box(min(a.x1, b.x1), min(a.y1, b.y1), max(a.x2, b.x2), max(a.y2, b.y2))))
    assert iou(a, b) == pytest.approx(both / either, abs=1e-12)
    assert giou(a, b) == pytest.approx(both / either - (hull - either) / hull, abs=1e-12)
    scaled = a.scaled(1 / 640, 1 / 480), b.scaled(1 / 640, 1 / 480)
    assert iou(*scaled) == pytest.approx(iou(a, b)) and giou(*scaled) == pytest.approx(giou(a, b))


@pytest.mark.parametrize("seed", range(40))
def test_matching_by_trying_every_assignment(seed: int) -> None:
    rng = random.Random(seed)
    found = [integer_box(rng) for _ in range(rng.randrange(1, 5))]
    gold = [integer_box(rng) for _ in range(rng.randrange(1, 5))]
    few, many = sorted([found, gold], key=len)
    best = max(
        sum(iou(a, b) for a, b in zip(few, order, strict=True)) for order in itertools.permutations(many, len(few))
    )
    assert matched_mean(found, gold, iou) == pytest.approx(best / len(many), abs=1e-12)


@pytest.mark.parametrize("seed", range(200))
def test_temporal_iou_by_counting_tenths_of_seconds(seed: int) -> None:
    rng = random.Random(seed)
    starts = [[rng.randrange(40) for _ in range(rng.randrange(4))] for _ in range(2)]
    sets = [[(start, start + rng.randrange(15)) for start in some] for some in starts]
    a, b = ({tick for start, end in spans for tick in range(start, end)} for spans in sets)
    wanted = 1.0 if not sets[0] and not sets[1] else len(a & b) / len(a | b) if a | b else 0.0
    found = temporal_iou(*[[(s / 10, e / 10) for s, e in spans] for spans in sets])
    assert found == pytest.approx(wanted, abs=1e-12)


def test_distance_in_boxes() -> None:
    box = Box(2, 2, 4, 6)
    assert distance_in_boxes((3, 6), box) == 0
    assert distance_in_boxes((1, 3), box) == 0.5 and distance_in_boxes((3, 10), box) == 1
    assert distance_in_boxes((1, 8), box) == pytest.approx(math.sqrt(0.5))


def naive_distance(a: str, b: str) -> int:
    table: dict[Any, int] = {}
    for i in range(len(a) + 1):
        for j in range(len(b) + 1):
            if min(i, j) == 0:
                table[i, j] = i + j
            else:
                swap = table[i - 1, j - 1] + (a[i - 1] != b[j - 1])
                table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, swap)
    return table[len(a), len(b)]


@pytest.mark.parametrize("seed", range(300))
def test_edit_distance_by_its_table(seed: int) -> None:
    rng = random.Random(seed)
    a, b = ("".join(rng.choice("abcé") for _ in range(rng.randrange(12))) for _ in range(2))
    assert edit_distance(a, b) == naive_distance(a, b) == edit_distance(b, a)
    longest = max(len(a), len(b))
    assert similarity(a, b) == pytest.approx(1 - naive_distance(a, b) / longest if longest else 1.0)


def naive_order(found: tuple[int, ...], gold: tuple[int, ...], mode: str) -> float:
    n = len(gold)
    if found == gold:
        return 1.0
    right = sum(1 for i in range(n) if found[i] == gold[i])
    if mode == "displacement":
        return 1 - sum(abs(found.index(piece) - gold.index(piece)) for piece in gold) / math.floor(n**2 / 2)
    if mode == "neighbours":
        return sum(found.index(gold[i]) + 1 == found.index(gold[i + 1]) for i in range(n - 1)) / (n - 1)
    return {"exact": 0.0, "places": right / n, "five_or_more": 0.2 * right / n if n > 4 else 0.0}[mode]


@pytest.mark.parametrize("mode", ["exact", "displacement", "places", "five_or_more", "neighbours"])
def test_orders_by_loops(mode: Any) -> None:
    for n in (2, 3, 4, 5):
        worth = []
        gold = tuple(random.Random(n).sample(range(1, n + 1), n))
        for found in itertools.permutations(gold):
            worth.append(order_credit(found, gold, mode))
            assert worth[-1] == pytest.approx(naive_order(found, gold, mode), abs=1e-12)
            assert 0 <= worth[-1] <= 1 and (worth[-1] == 1) == (found == gold)
        if mode == "places":  # the mean of a random answer, as the docstring says
            assert sum(worth) / len(worth) == pytest.approx(1 / n)


def test_neighbours_on_a_board() -> None:
    gold = (1, 2, 3, 4, 5, 6)  # two rows of three: 4 pairs beside, 3 above
    assert order_credit((4, 5, 6, 1, 2, 3), gold, "neighbours", 3) == pytest.approx(4 / 7)
    assert order_credit((2, 1, 3, 5, 4, 6), gold, "neighbours", 3) == pytest.approx(3 / 7)


@pytest.mark.parametrize("length", range(0, 130, 3))
def test_lengths_by_their_formulas(length: int) -> None:
    limit, buffer = 100, 30
    if length <= limit - buffer:
        wanted = 0.0
    elif length <= limit:
        wanted = (limit - buffer - length) / buffer
    else:
        wanted = -1.0
    assert overlong_penalty(length, limit, buffer) == pytest.approx(wanted)
    angle = min(length, 100) / 100 * math.pi
    assert cosine_value(length, 100, 1.0, 0.5) == pytest.approx(0.5 + 0.5 * 0.5 * (1 + math.cos(angle)))


@pytest.mark.parametrize("seed", range(50))
def test_repetition_by_loops(seed: int) -> None:
    rng = random.Random(seed)
    words = [rng.choice("aAbc") for _ in range(rng.randrange(12))]
    n = rng.randrange(1, 4)
    grams, repeats = [], 0
    for at in range(len(words) - n + 1):
        gram = [word.lower() for word in words[at : at + n]]
        repeats += gram in grams
        grams.append(gram)
    assert repeated_ngrams(" ".join(words), n) == pytest.approx(repeats / len(grams) if grams else 0.0)
    lines = [rng.choice(["a b", "c d", "e"]) for _ in range(10)]
    runs, run = [0], 0
    for at, line in enumerate(lines):
        run = run + 1 if at and lines[at - 1] == line else 1
        runs.append(run if len(line.split()) >= 2 else 0)
    assert longest_run("\n".join(lines), 2) == max(runs)


def test_count_credit() -> None:
    assert [count_credit(p, 4) for p in (4, 3, 6, 8, 9, -1)] == [1, 0.75, 0.5, 0, 0, 0]
    assert [count_credit(p, 0) for p in (0, 0.5, 1, -2)] == [1, 0.5, 0, 0] and count_credit(-3, -4) == 0.75
