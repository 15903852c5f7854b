"""What the rewards for text answers share: the target, the form that is required, and a word for the log."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

from mmrl.reward import Graded, Reward
from mmrl.rewards.verifiable.parse.format import follows
from mmrl.rewards.verifiable.parse.region import Parsed
from mmrl.rollout import Sample


class Reading(TypedDict):
    """What every parser needs to know about the text besides the text."""

    opened: bool
    repair_tags: bool


class Case(NamedTuple):
    """One answer to be graded."""

    text: str
    target: Any
    sample: Sample


class VerifiableReward(Reward):
    """Base of rewards that compare `Sample.text` with a target.

    An answer that cannot be read is wrong and earns 0; a target that cannot be read is an error in the data, which fails
    the sample. How an answer was read is logged: the name of the rule, "unparsed", "truncated", or "form" where the
    required form is not there.
    """

    range = (0.0, 1.0)
    needs = ("text", "target")
    licence = "Apache-2.0"
    target_key: str | None = None
    """Where the target is a mapping: which entry to compare with. A sample without that entry is skipped."""
    opened: bool = False
    """The prompt ends in an open <think>, so a text that never closes it is unfinished reasoning."""
    repair_tags: bool = False
    """Close up blanks inside think and answer tags ("< / think >") before reading."""
    require: Literal["think_answer", "think_boxed", "answer_only", "boxed_only"] | None = None
    """A form that the text must have to earn anything."""

    @abstractmethod
    def grade(self, case: Case) -> tuple[Parsed[Any], float]:
        """What was read, and its score. Raises ValueError for a target that cannot be compared with."""

    def grade_all(self, cases: Sequence[Case]) -> list[tuple[Parsed[Any], float]]:
        """`grade` for every case, in order."""
        return [self.grade(case) for case in cases]

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """One number per sample; None where the target has no entry `target_key`."""
        cases = [self._case(sample) for sample in samples]
        graded = iter(self.grade_all([case for case in cases if case is not None]))
        return [None if case is None else self._gated(case, *next(graded)) for case in cases]

    @property
    def reading(self) -> Reading:
        """The options that go to a parser."""
        return {"opened": self.opened, "repair_tags": self.repair_tags}

    def _case(self, sample: Sample) -> Case | None:
        assert sample.text is not None
        target = sample.prompt.target
        if self.target_key is None:
            if isinstance(target, Mapping):
                keys = ", ".join(map(str, target))
                raise ValueError(f"the target is a mapping ({keys}); set target_key to the entry to compare with")
            return Case(sample.text, target, sample)
        if not isinstance(target, Mapping):
            raise ValueError(f"target_key is '{self.target_key}', but the target is no mapping: {target!r}")
        if target.get(self.target_key) is None:
            return None
        return Case(sample.text, target[self.target_key], sample)

    def _gated(self, case: Case, parsed: Parsed[Any], value: float) -> Graded:
        if self.require is not None and not follows(case.text, self.require, **self.reading):
            return Graded(0.0, "form")
        return Graded(value, parsed.label)
