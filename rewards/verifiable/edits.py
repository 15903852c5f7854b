"""How alike two texts are: edit distance as a share, and its thresholded form ANLS."""

from __future__ import annotations

from pydantic import Field

from mmrl.rewards.verifiable.base import Case, VerifiableReward
from mmrl.rewards.verifiable.parse.region import Parsed, answer_text
from mmrl.rewards.verifiable.words import gold_texts


def edit_distance(a: str, b: str) -> int:
    """Insertions, deletions and substitutions (Levenshtein) between two texts.

    One column of the table is two bit vectors of its differences (Myers 1999; Hyyrö 2003), so a row of the table costs a
    few operations on big integers.
    """
    if not a or not b:
        return max(len(a), len(b))
    where: dict[str, int] = {}
    for place, letter in enumerate(a):
        where[letter] = where.get(letter, 0) | 1 << place
    full, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    up, down, distance = full, 0, len(a)
    for letter in b:
        match = where.get(letter, 0)
        diagonal = (((match & up) + up) ^ up) | match | down
        right_up, right_down = down | ~(diagonal | up) & full, up & diagonal
        distance += bool(right_up & last) - bool(right_down & last)
        right_up, right_down = (right_up << 1 | 1) & full, right_down << 1 & full
        up, down = right_down | ~(diagonal | right_up) & full, right_up & diagonal
    return distance


def similarity(a: str, b: str, threshold: float = 0.0) -> float:
    """1 - d / n with the edit distance d and the longer length n, in [0, 1]; 0 below `threshold`. Two empty texts: 1.

    Case, and blanks beyond single ones, do not count.
    """
    a, b = (" ".join(text.casefold().split()) for text in (a, b))
    longest = max(len(a), len(b))
    value = 1 - edit_distance(a, b) / longest if longest else 1.0
    return value if value >= threshold else 0.0


class EditSimilarity(VerifiableReward):
    """1 - d / n between the answer and the target (the best of several), with edit distance d and the longer length n."""

    threshold: float = Field(default=0.0, ge=0, le=1)
    """A smaller similarity earns 0."""

    def grade(self, case: Case) -> tuple[Parsed[str], float]:
        """Raises ValueError for a target that is no text."""
        golds = gold_texts(case.target)
        parsed = answer_text(case.text, **self.reading)
        if parsed.value is None:
            return parsed, 0.0
        return parsed, max(similarity(parsed.value, gold, self.threshold) for gold in golds)


class Anls(EditSimilarity):
    """Average normalised Levenshtein similarity of one answer: 1 - d / n, and 0 below 0.5."""

    threshold: float = Field(default=0.5, ge=0, le=1)
