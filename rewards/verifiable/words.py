"""Answers that are words: exact text, yes or no, a letter of a multiple-choice question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from mmrl.rewards.verifiable.base import Case, VerifiableReward
from mmrl.rewards.verifiable.parse.choice import LETTERS, parse_choice
from mmrl.rewards.verifiable.parse.region import Parsed, answer_text, normalise
from mmrl.rewards.verifiable.parse.yes_no import parse_yes_no


def gold_texts(target: Any) -> list[str]:
    """The accepted texts: a text, a number, or a list of them. Raises ValueError for anything else."""
    found = target if isinstance(target, list | tuple) else [target]
    if not found or not all(isinstance(text, str | int | float) and str(text).strip() for text in found):
        raise ValueError(f"the target is {target!r}; expected a text or a list of texts")
    return [str(text) for text in found]


class Exact(VerifiableReward):
    """1 if the answer is the target, or one of them, but for case, blanks and punctuation around it; no partial credit."""

    case_sensitive: bool = False
    """Upper and lower case differ."""

    def grade(self, case: Case) -> tuple[Parsed[str], float]:
        """Texts are compared after `normalise`. Raises ValueError for a target that is no text."""
        golds = gold_texts(case.target)
        parsed = answer_text(case.text, **self.reading)
        if parsed.value is None:
            return parsed, 0.0
        if self.case_sensitive:
            return parsed, float(" ".join(parsed.value.split()) in [" ".join(gold.split()) for gold in golds])
        said = normalise(parsed.value) or parsed.value  # an answer may be nothing but punctuation
        return parsed, float(said in [normalise(gold) or gold.strip() for gold in golds])


class YesNo(VerifiableReward):
    """1 if the answer says the target, "yes" or "no" (or true or false in the data), as a whole word."""

    def grade(self, case: Case) -> tuple[Parsed[Any], float]:
        """Raises ValueError for a target that is neither."""
        gold = {True: "yes", False: "no"}[case.target] if isinstance(case.target, bool) else case.target
        gold = normalise(gold) if isinstance(gold, str) else gold
        if gold not in ("yes", "no"):
            raise ValueError(f"the target is {case.target!r}; expected yes or no")
        parsed = parse_yes_no(case.text, **self.reading)
        return parsed, float(parsed.value == gold)


class Choice(VerifiableReward):
    """1 if the answer chooses the target's letter."""

    letters: str = Field(default=LETTERS, pattern=r"^[A-Z]+$")
    """The letters that name an option; with options at hand, as many of them as there are options."""
    options_key: str = "options"
    """Entry of the target (a mapping), else of the prompt's meta, with the options' texts: a list, or letter -> text."""

    def grade(self, case: Case) -> tuple[Parsed[str], float]:
        """Raises ValueError for a target that names no option."""
        options = self._options(case)
        letters = self.letters[: len(options)] if options else self.letters
        gold = parse_choice(case.target, letters, options).value if isinstance(case.target, str) else None
        if gold is None:
            raise ValueError(f"the target is {case.target!r}; expected one of the letters {letters}")
        parsed = parse_choice(case.text, letters, options, **self.reading)
        return parsed, float(parsed.value == gold)

    def _options(self, case: Case) -> list[str]:
        target, meta = case.sample.prompt.target, case.sample.prompt.meta
        found = target.get(self.options_key) if isinstance(target, Mapping) else None
        found = meta.get(self.options_key) if found is None else found
        if found is None:
            return []
        if isinstance(found, Mapping):
            wanted = list(self.letters[: len(found)])
            if list(found) != wanted:
                raise ValueError(f"the options are named {', '.join(map(str, found))}; expected {', '.join(wanted)}")
            found = list(found.values())
        if not isinstance(found, Sequence) or isinstance(found, str) or len(found) > len(self.letters):
            raise ValueError(f"the options are {found!r}; expected a list of at most {len(self.letters)} texts")
        return [str(option) for option in found]
