"""Answers that are numbers: equal, close, or counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from mmrl.rewards.verifiable.base import Case, VerifiableReward
from mmrl.rewards.verifiable.parse.numbers import find_numbers, gold_number, parse_number, read_number, same_number
from mmrl.rewards.verifiable.parse.region import Parsed, answer_text, normalise


class NumberReward(VerifiableReward):
    """1 if the answer is the target number within max(absolute, relative * |target|).

    50% is 0.5. Two whole numbers must be the same. Two different units are different, a missing unit is not.
    """

    relative: float = Field(default=1e-6, ge=0)
    """Largest difference from the target, as a share of the target."""
    absolute: float = Field(default=1e-9, ge=0)
    """Largest difference from the target, as a number; the larger of the two counts."""

    def grade(self, case: Case) -> tuple[Parsed[Any], float]:
        """Raises ValueError for a target that is no number."""
        gold = gold_number(case.target)
        parsed = parse_number(case.text, **self.reading)
        if parsed.value is None:
            return parsed, 0.0
        return parsed, float(same_number(parsed.value, gold, self.relative, self.absolute))


class RelaxedNumber(VerifiableReward):
    """1 if the answer is within 5 % of a number (50% is 0.5), or the same word where the target is no number."""

    tolerance: float = Field(default=0.05, ge=0, lt=1)
    """Largest difference from the target, as a share of the target."""

    def grade(self, case: Case) -> tuple[Parsed[Any], float]:
        """Raises ValueError for a target that is neither a number nor a text."""
        gold = case.target if isinstance(case.target, str) else None
        if gold is None or read_number(gold) is not None:
            wanted = gold_number(case.target).share
            parsed = parse_number(case.text, **self.reading)
            close = (
                parsed.value is not None and abs(parsed.value.share - wanted) <= self.tolerance * abs(wanted) + 1e-12
            )
            return parsed, float(close)
        if not normalise(gold):
            raise ValueError(f"the target is {case.target!r}; expected a number or a text")
        said = answer_text(case.text, **self.reading)
        return said, float(said.value is not None and normalise(said.value) == normalise(gold))


def count_credit(answer: float, gold: float) -> float:
    """max(0, 1 - |p - g| / max(|g|, 1)); VideoSSR's rule, with a floor under the divisor."""
    return max(0.0, 1 - abs(answer - gold) / max(abs(gold), 1.0))


class Count(VerifiableReward):
    """How right one count is, or a list of counts: the mean over its items, 0 if there are more or fewer of them."""

    mode: Literal["exact", "relative"] = "exact"
    """exact: 1 or 0 per item; relative: max(0, 1 - |p - g| / max(|g|, 1))."""

    def grade(self, case: Case) -> tuple[Parsed[Any], float]:
        """Raises ValueError for a target that is no number or list of numbers."""
        several = isinstance(case.target, Sequence) and not isinstance(case.target, str)
        golds = [gold_number(item).value for item in (case.target if several else [case.target])]
        if not golds:
            raise ValueError("the target is an empty list; expected counts")
        if not several:
            parsed = parse_number(case.text, **self.reading)
            return parsed, self._credit(parsed.value.value, golds[0]) if parsed.value is not None else 0.0
        region = answer_text(case.text, **self.reading)
        numbers = [number.value for number in find_numbers(region.value or "")]
        if len(numbers) != len(golds):
            return region.found(None), 0.0
        mean = sum(self._credit(number, gold) for number, gold in zip(numbers, golds, strict=True)) / len(golds)
        return region.found(numbers, "list"), mean

    def _credit(self, answer: float, gold: float) -> float:
        return float(answer == gold) if self.mode == "exact" else count_credit(answer, gold)
