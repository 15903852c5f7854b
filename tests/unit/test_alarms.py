"""Alarms about rewards: saturation, and two that say the same or the opposite."""

from __future__ import annotations

import numpy as np
import pytest

from mmrl.alarms import WINDOW, Alarms, commonest, correlation


def test_the_correlation_is_that_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=50)
    b = a + rng.normal(size=50)
    a[3] = b[7] = np.nan
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x == x and y == y]
    mean = [sum(pair[k] for pair in pairs) / len(pairs) for k in range(2)]
    cross = sum((x - mean[0]) * (y - mean[1]) for x, y in pairs)
    squares = [sum((pair[k] - mean[k]) ** 2 for pair in pairs) for k in range(2)]
    assert correlation(a, b) == pytest.approx(cross / (squares[0] * squares[1]) ** 0.5)
    assert correlation(np.ones(4), np.arange(4.0)) is None
    assert correlation(np.array([np.nan, 1.0]), np.arange(2.0)) is None
    assert correlation(np.array([1e300, -1e300, 0.0]), np.arange(3.0)) == pytest.approx(-0.5)


def test_the_commonest_score() -> None:
    assert commonest(np.array([1.0, 0.0, 1.0, 1.0])) == (1.0, 0.75)
    assert commonest(np.array([]))[1] == 0.0


def run(alarms: Alarms, steps: int, *columns: object) -> list[str]:
    rng = np.random.default_rng(1)
    found: list[str] = []
    for _ in range(steps):
        base = rng.normal(size=10)
        parts = {"base": base, "same": 2 * base + 1, "against": -base, "other": rng.normal(size=10), "one": np.ones(10)}
        parts["nearly"] = np.where(np.arange(10) < 9, 1.0, base)  # 90 %
        parts["failed"] = np.full(10, np.nan)
        found += alarms.add(np.stack([parts[str(name)] for name in columns], axis=1))
    return found


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (("base", "one"), "'b' gave 1 to 100% of 200 samples"),
        (("base", "same"), "count one thing twice"),
        (("base", "against"), "pull against each other"),
        (("base", "other"), None),
        (("base", "nearly"), None),
        (("base", "failed"), None),
    ],
)
def test_each_is_said_once_after_a_whole_window(columns: tuple[str, str], words: str | None) -> None:
    alarms = Alarms(("a", "b"), (1.0, 0.5))
    assert not run(alarms, WINDOW - 1, *columns)
    found = run(alarms, 5, *columns)
    assert len(found) == (words is not None) and (words is None or words in found[0])


@pytest.mark.parametrize(
    ("column", "words"), [("same", "pull against each other"), ("against", "count one thing twice"), ("other", None)]
)
def test_what_a_negative_weight_makes_of_a_correlation(column: str, words: str | None) -> None:
    found = run(Alarms(("a", "b"), (1.0, -0.5)), WINDOW, "base", column)
    assert len(found) == (words is not None) and (words is None or words in found[0])


def test_of_a_few_samples_nothing_is_said() -> None:
    alarms, rare = Alarms(("a", "b"), (1.0, 1.0)), np.full((2, 2), np.nan)
    found = [line for _ in range(WINDOW - 2) for line in alarms.add(rare)]
    found += [line for value in (0.0, 1.0) for line in alarms.add(np.array([[value, 1 - value], [value, np.nan]]))]
    assert not found


def test_rewards_that_are_not_trained_raise_no_alarm() -> None:
    assert not run(Alarms(("a", "b"), (1.0, 0.0)), WINDOW, "base", "same")
