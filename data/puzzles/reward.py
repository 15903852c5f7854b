"""The verifiers of the puzzles as a reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mmrl.components import resolve
from mmrl.data.puzzles.answer import last_answer, well_formed
from mmrl.data.puzzles.puzzle import UNPARSED, PuzzleMaker, Verdict
from mmrl.reward import Need, Reward
from mmrl.rollout import Sample


class PuzzleReward(Reward):
    """Judges the text by its last <answer></answer> against `prompt.target` of a puzzle.

    partial  the verifier's credit in [0, 1], 1 only for a right answer
    exact    1 for a right answer, else 0
    parsed   1 if there is an answer that could be read, right or wrong; meant to be held out
    format   1 for exactly <think>...</think><answer>...</answer>, whatever is in it

    A text without a whole answer block, or with an answer that cannot be read, scores 0.
    """

    range = (0.0, 1.0)
    needs = ("text",)
    licence = "Apache-2.0"
    mode: Literal["partial", "exact", "parsed", "format"] = "partial"
    """What a score says: the class text above has the modes."""

    def inputs(self) -> tuple[Need, ...]:
        """A text, and for all modes but `format` the target of its prompt."""
        return ("text",) if self.mode == "format" else ("text", "target")

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """One number per sample; leaves the answer that was read in `sample.meta["answer"]` (None: there is none), which
        majority votes and measures of dispersion compare. Raises ValueError for a missing or foreign target."""
        for sample in samples:
            sample.meta["answer"] = last_answer(sample.text or "")
        if self.mode == "format":
            return [float(well_formed(sample.text or "")) for sample in samples]
        verdicts = [judge(sample.text or "", sample.prompt.target, sample.prompt.id) for sample in samples]
        if self.mode == "partial":
            return [verdict.score for verdict in verdicts]
        return [float(verdict.exact if self.mode == "exact" else verdict.parsed) for verdict in verdicts]


def judge(text: str, target: Any, prompt: str = "?") -> Verdict:
    """The verdict on the answer of a whole text. Raises ValueError for a target that is no puzzle's."""
    if not isinstance(target, Mapping) or not {"kind", "puzzle"} <= target.keys():
        raise ValueError(
            f"prompt '{prompt}' has no target of a puzzle: {target!r}; the verifier needs prompts of the puzzles source"
        )
    maker = resolve("puzzle", str(target["kind"]))
    if not (isinstance(maker, type) and issubclass(maker, PuzzleMaker)):
        raise ValueError(f"prompt '{prompt}': '{target['kind']}' is no puzzle kind")
    answer = last_answer(text)
    return UNPARSED if answer is None else maker.verify(target["puzzle"], answer)
