"""Formulas compared by math-verify in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mmrl.components import build
from mmrl.reward import RewardSet
from mmrl.rewards.verifiable.mathematics import MathReward
from mmrl.rollout import FAILED, OK, Prompt, Sample

pytest.importorskip("math_verify")
ENDLESS = "9^{9^{9^{9}}}"


@pytest.fixture(scope="module")
def judge() -> Iterator[MathReward]:
    reward = build("reward", {"name": "math", "limit": 3.0})
    yield reward
    reward._pool.close()


def samples(*pairs: tuple[str, object]) -> list[Sample]:
    return [Sample(Prompt(str(row), "q", target=target), text=text) for row, (text, target) in enumerate(pairs)]


def test_symbols_truths_and_endless_answers(judge: MathReward) -> None:
    batch = samples(
        (r"\boxed{1+x^2}", "$x^2+1$"),
        (r"\boxed{x^2}", "$x^2+1$"),
        ("1e3", 1000),
        ("", "x"),
        ("x", "$$$"),
        (rf"\boxed{{{ENDLESS}}}", "3"),
        ("12 mm", "12 cm"),
        (r"<answer>\{2,1\}</answer>", r"\{1,2\}"),
    )
    scores = RewardSet({"r": (judge, 1.0)}).score(batch)
    assert scores.status[:, 0].tolist() == [OK, OK, OK, OK, FAILED, FAILED, OK, OK]
    assert scores.values[[0, 1, 2, 3, 6, 7], 0].tolist() == [1, 0, 1, 0, 0, 1]
    assert "which math-verify cannot read" in scores.messages[0] or "expected a formula" in scores.messages[0]
    assert "no verdict within 3 s of processor time" in scores.messages[1] and "prompt '5'" in scores.messages[1]


def test_a_verdict_is_remembered(judge: MathReward) -> None:
    once = judge.score(samples((r"\boxed{a+b}", "b+a")))
    judge._pool._idle, idle = None, judge._pool._idle  # no process can be asked any more
    assert judge.score(samples((r"\boxed{a+b}", "b+a"), (r"so \boxed{a+b}", "b+a"))) == once * 2 == [1, 1]
    judge._pool._idle = idle
