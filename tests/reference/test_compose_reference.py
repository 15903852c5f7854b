"""Transforms of scores against loops, and what they must not depend on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.advantage.constraint import below_the_rest
from mmrl.advantage.noisy import NoisyVerifier, appealed
from mmrl.advantage.types import Scored
from mmrl.components import build
from mmrl.compose.transform import Seen

NAN = float("nan")
SCORES = st.lists(st.one_of(st.floats(-5, 5, width=16), st.just(NAN)), min_size=1, max_size=12)


def naive(name: str, options: dict[str, Any], values: list[float], group: list[int], by: list[float]) -> list[float]:
    found = []
    for i, x in enumerate(values):
        if math.isnan(x):
            found.append(NAN)
            continue
        peers = [v for v, g in zip(values, group, strict=True) if g == group[i] and not math.isnan(v)]
        everyone = [v for v in values if not math.isnan(v)]
        if name == "affine":
            y = (x - options["mean"]) / options["std"]
        elif name == "min_max":
            y = min(max((x - options["low"]) / (options["high"] - options["low"]), 0.0), 1.0)
        elif name == "clip":
            y = options["low"] if x < options["low"] else options["high"] if x > options["high"] else x
        elif name == "standardise":
            pool = peers if options["over"] == "group" else everyone
            mean = sum(pool) / len(pool)
            if max(pool) - min(pool) <= 1e-6 * max(1.0, abs(mean)):
                y = 0.0
            else:
                std = math.sqrt(sum((v - mean) ** 2 for v in pool) / (len(pool) - options["ddof"]))
                y = (x - mean) / (std + 1e-4)
        elif name == "rank":
            lower, equal = sum(v < x for v in peers), sum(v == x for v in peers)
            y = 0.5 if len(peers) == 1 else (lower + (equal - 1) / 2) / (len(peers) - 1)
        elif name == "running":
            mean = sum(everyone) / len(everyone)
            y = (x - mean) / (math.sqrt(sum((v - mean) ** 2 for v in everyone) / len(everyone)) + 1e-4)
        elif name == "gate":
            y = NAN if math.isnan(by[i]) else x if by[i] >= options["at_least"] else options["floor"]
        else:
            y = NAN if math.isnan(by[i]) else x * by[i]
        found.append(y)
    return found


CASES: list[tuple[str, dict[str, Any]]] = [
    ("affine", {"mean": 0.5, "std": 2.0}),
    ("min_max", {"low": -1.0, "high": 3.0}),
    ("clip", {"low": -1.0, "high": 1.5}),
    ("standardise", {"over": "group", "ddof": 1}),
    ("standardise", {"over": "group", "ddof": 0}),
    ("standardise", {"over": "batch", "ddof": 0}),
    ("rank", {}),
    ("running", {}),
    ("gate", {"by": "other", "at_least": 0.5, "floor": -1.0}),
    ("times", {"by": "other"}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
@settings(max_examples=60, deadline=None)
@given(values=SCORES, data=st.data())
def test_transforms_are_their_formulas(name: str, options: dict[str, Any], values: list[float], data: Any) -> None:
    size = len(values)
    group = data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    by = data.draw(st.lists(st.one_of(st.floats(0, 1, width=16), st.just(NAN)), min_size=size, max_size=size))
    transform = build("transform", {"name": name, **options})
    seen = Seen(np.array(group), {"other": np.array(by)})
    got = transform(np.array(values), seen)
    np.testing.assert_allclose(got, naive(name, options, values, group, by), rtol=1e-9, atol=1e-9)
    order = np.array(data.draw(st.permutations(range(size))), dtype=int)
    turned = transform(np.array(values)[order], Seen(np.array(group)[order], {"other": np.array(by)[order]}))
    np.testing.assert_allclose(turned, got[order], rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(SCORES, min_size=1, max_size=4), decay=st.sampled_from([1.0, 0.5]))
def test_running_statistics_are_those_of_all_steps(steps: list[list[float]], decay: float) -> None:
    running = build("transform", {"name": "running", "decay": decay})
    weighted: list[tuple[float, float]] = []
    for values in steps:
        own = [v for v in values if not math.isnan(v)]
        if own:
            weighted = [(w * decay, v) for w, v in weighted] + [(1.0, v) for v in own]
        seen = Seen(np.zeros(len(values), dtype=int), {})
        got = running(np.array(values), seen)
        again = running(np.array(values), seen)  # asking changes nothing
        np.testing.assert_array_equal(got, again)
        running.remember(np.array(values), seen)
        if not weighted:
            assert np.isnan(got).all()
            continue
        total = sum(w for w, _ in weighted)
        mean = sum(w * v for w, v in weighted) / total
        std = math.sqrt(sum(w * (v - mean) ** 2 for w, v in weighted) / total)
        np.testing.assert_allclose(got, [(v - mean) / (std + 1e-4) for v in values], rtol=1e-6, atol=1e-6)


def test_a_multiplier_grows_while_its_constraint_is_broken_and_shrinks_to_0() -> None:
    lagrange = build("transform", {"name": "lagrange", "at_least": 0.6, "rate": 0.5, "most": 0.4})
    seen = Seen(np.zeros(3, dtype=int), {})
    multiplier = 0.0
    for values in (
        [0.0, 0.2, NAN],
        [0.0, 0.2, 0.1],
        [1.0, 1.0, NAN],
        [NAN, NAN, NAN],
        [1.0, 1.0, 1.0],
        [1.0, 1.0, 1.0],
    ):
        np.testing.assert_allclose(lagrange(np.array(values), seen), [multiplier * (v - 0.6) for v in values])
        lagrange.remember(np.array(values), seen)
        own = [v for v in values if not math.isnan(v)]
        if own:
            multiplier = min(max(multiplier + 0.5 * (0.6 - sum(own) / len(own)), 0.0), 0.4)
        assert lagrange.multiplier == pytest.approx(multiplier)
    assert multiplier == 0.0


def test_an_upper_bound_is_the_lower_bound_of_the_negated_score() -> None:
    low = build("transform", {"name": "lagrange", "at_least": -0.2, "rate": 0.5, "start": 0.1})
    high = build("transform", {"name": "lagrange", "at_most": 0.2, "rate": 0.5, "start": 0.1})
    seen = Seen(np.zeros(2, dtype=int), {})
    for values in ([0.5, 0.9], [0.1, 0.3], [0.0, 0.0]):
        x = np.array(values)
        np.testing.assert_allclose(-high(x, seen), low(-x, seen))
        high.remember(x, seen)
        low.remember(-x, seen)
        assert high.multiplier == pytest.approx(low.multiplier)
    assert high.multiplier > 0.1


@settings(max_examples=80, deadline=None)
@given(values=SCORES, data=st.data())
def test_whoever_breaks_a_constraint_comes_last(values: list[float], data: Any) -> None:
    size = len(values)
    group = data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    broken = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    got = below_the_rest(np.array(values), np.array(group), np.array(broken), 0.25)
    for i, x in enumerate(values):
        kept = [
            v for v, g, b in zip(values, group, broken, strict=True) if g == group[i] and not b and not math.isnan(v)
        ]
        want = min(kept) - 0.25 if kept and broken[i] and not math.isnan(x) else x
        assert got[i] == want or (math.isnan(got[i]) and math.isnan(want))


def test_an_appeal_says_how_often_the_verifier_misses() -> None:
    reward = [1.0, 0.0, 0.0, 1.0, 0.0, NAN, 0.0]
    appeal = [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, NAN]
    missed = right = 0
    for r, a in zip(reward, appeal, strict=True):
        if math.isnan(r) or math.isnan(a):
            continue
        missed += r == 0 and a == 1
        right += r == 1 or (r == 0 and a == 1)
    assert appealed(np.array(reward), np.array(appeal)) == missed / right == 0.5
    assert appealed(np.zeros(2), np.zeros(2)) == 0.0
    scores = np.array([reward, appeal]).T
    scored = Scored(scores[:, 0], np.zeros(7, dtype=int), scores, weights=np.array([1.0, 0.0]), names=("rule", "again"))
    asked, told = NoisyVerifier(appeal="again"), NoisyVerifier(false_negative=0.5)
    np.testing.assert_array_equal(asked.before(scored).reward, told.before(scored).reward)
    assert asked.metrics(scored) == {"noisy_verifier/false_negative": 0.5}
    forward = NoisyVerifier(mode="forward", appeal="again")
    got = forward(np.zeros(7), forward.before(scored))
    np.testing.assert_array_equal(got, [0.5, -0.5, -0.5, 0.5, -0.5, 0.0, -0.5])
    with pytest.raises(ValueError, match="give one of the two"):
        NoisyVerifier(false_negative=0.1, appeal="again")
