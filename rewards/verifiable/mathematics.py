"""Answers that are formulas: the same text, the same number, or the same by symbolic mathematics."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, PrivateAttr
from torch import device as Device

from mmrl.rewards.verifiable.base import Case, VerifiableReward
from mmrl.rewards.verifiable.math_pool import MathPool
from mmrl.rewards.verifiable.parse.expression import evaluate
from mmrl.rewards.verifiable.parse.formula import parse_formula
from mmrl.rewards.verifiable.parse.numbers import gold_number, plain, read_number, same_number
from mmrl.rewards.verifiable.parse.region import Parsed, answer_text

_SHORT_FRACTION = re.compile(r"\\[dt]frac")


def same_formula_text(a: str, b: str) -> bool:
    r"""Equal as text, but for blanks, dollar signs, \text{}, \left and \right, and the kind of \frac."""
    return _stripped(a) == _stripped(b) != ""


def _stripped(text: str) -> str:
    return "".join(_SHORT_FRACTION.sub(r"\\frac", plain(text)).removesuffix(".").split())


def gold_formula(target: Any) -> str:
    """A target as a formula: a number, or a text with or without dollar signs, box or answer tags. Raises ValueError."""
    if isinstance(target, int | float):
        gold_number(target)
        return repr(target)
    formula = answer_text(target).value if isinstance(target, str) else None
    formula = formula.strip().strip("$").strip() if formula else None
    if not formula:
        raise ValueError(f"the target is {target!r}; expected a formula or a number")
    return formula


def quick_verdict(answer: str, gold: str, relative: float) -> bool | None:
    """Whether two formulas are equal, as far as text and numbers can tell; None if they cannot."""
    if same_formula_text(answer, gold):
        return True
    found, wanted = read_number(answer), read_number(gold)
    if found is None or wanted is None:
        return None
    if found.unit and wanted.unit and found.unit != wanted.unit:
        return False
    return True if same_number(found, wanted, relative) else None


class MathReward(VerifiableReward):
    """1 if the answer is the target: the same text, the same number, or the same for math-verify.

    math_verify  the default: whatever math-verify can compare, in `workers` processes with a time limit
    numbers      needs no package: texts, numbers, and arithmetic with roots, powers and pi

    A target that the engine cannot read fails the sample, and so does a comparison that takes too long.
    """

    engine: Literal["math_verify", "numbers"] = "math_verify"
    """`math_verify`: formulas too, by that package; `numbers`: texts and numbers, without a package."""
    relative: float = Field(default=1e-4, ge=0, lt=1)
    """Largest relative difference of two numbers in decimals; two whole numbers must be the same."""
    limit: float = Field(default=5.0, gt=0)
    """Seconds of processor time for one comparison by math-verify."""
    workers: int = Field(default=1, ge=1, le=64)
    """Processes of math-verify."""
    _pool: Any = PrivateAttr(None)

    def setup(self, device: Device) -> None:
        """Raises UserError if the engine is not installed."""
        if self.engine == "math_verify" and self._pool is None:
            self._pool = MathPool(self.workers, self.limit)

    def grade(self, case: Case) -> tuple[Parsed[str], float]:
        """One case of `grade_all`."""
        return self.grade_all([case])[0]

    def grade_all(self, cases: Sequence[Case]) -> list[tuple[Parsed[Any], float]]:
        """Raises ValueError for a target that cannot be read, or for a comparison without a verdict."""
        golds = [gold_formula(case.target) for case in cases]
        answers = [parse_formula(case.text, **self.reading) for case in cases]
        decide = self._by_numbers if self.engine == "numbers" else self._by_math_verify
        verdicts = decide(golds, [answer.value for answer in answers])
        return [(answer, float(verdict)) for answer, verdict in zip(answers, verdicts, strict=True)]

    def _by_numbers(self, golds: Sequence[str], answers: Sequence[str | None]) -> list[bool]:
        verdicts = []
        for gold, answer in zip(golds, answers, strict=True):
            number, wanted = read_number(gold), evaluate(gold)
            if number is None and wanted is None:
                raise ValueError(
                    f"the target is {gold!r}, which engine 'numbers' cannot read; use engine 'math_verify'"
                )
            verdict = quick_verdict(answer, gold, self.relative) if answer is not None else False
            if verdict is None:
                exact = number.share if wanted is None and number is not None else wanted
                found = evaluate(answer or "")
                verdict = found is not None and exact is not None and math.isclose(found, exact, rel_tol=1e-9)
            verdicts.append(verdict)
        return verdicts

    def _by_math_verify(self, golds: Sequence[str], answers: Sequence[str | None]) -> list[bool]:
        self.setup(Device("cpu"))
        verdicts = [
            False if answer is None else quick_verdict(answer, gold, self.relative)
            for gold, answer in zip(golds, answers, strict=True)
        ]
        open_pairs = sorted(
            {(g, a) for g, a, v in zip(golds, answers, verdicts, strict=True) if a is not None and v is None}
        )
        asked = {gold for gold, _ in open_pairs}
        unread = sorted({gold for gold in golds if read_number(gold) is None} - asked)
        questions: list[tuple[str, str | None]] = [*open_pairs, *((gold, None) for gold in unread)]
        found = dict(zip(questions, self._pool.compare(questions), strict=True))
        for (gold, answer), outcome in found.items():
            if outcome.error:
                raise ValueError(f"comparing {answer!r} with the target {gold!r}: {outcome.error}")
            if not outcome.readable:
                raise ValueError(f"the target is {gold!r}, which math-verify cannot read")
        return [
            found[gold, answer].equal if verdict is None else verdict
            for gold, answer, verdict in zip(golds, answers, verdicts, strict=True)
        ]
