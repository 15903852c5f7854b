"""The form of a text as a reward of its own. To pay nothing without it, set `require` on the other rewards."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import model_validator

from mmrl.reward import Reward
from mmrl.rewards.verifiable.parse.format import Form, follows
from mmrl.rollout import Sample


class FormatReward(Reward):
    """1 if the text has the agreed form, else 0: think_answer, think_boxed, answer_only, boxed_only or a regex."""

    range = (0.0, 1.0)
    needs = ("text",)
    licence = "Apache-2.0"
    form: Form = "think_answer"
    """The form that is asked for; `regex`: that of `pattern`."""
    pattern: str = ""
    """For form regex: what the whole text must match; "." matches line breaks."""
    opened: bool = False
    """The prompt ends in an open <think>."""
    repair_tags: bool = False
    """Close up blanks inside think and answer tags ("< / think >") before looking."""

    @model_validator(mode="after")
    def _pattern_belongs_to_regex(self) -> FormatReward:
        if (self.form == "regex") != bool(self.pattern):
            raise ValueError(
                f"form is {self.form} and pattern is {self.pattern!r}; a pattern belongs to form regex, and only to it"
            )
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from None
        return self

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """One number per sample."""
        return [
            float(follows(sample.text or "", self.form, self.pattern, self.opened, self.repair_tags))
            for sample in samples
        ]
