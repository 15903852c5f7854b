"""A reward without labels: agreement with the answer that most of the group gave (MM-UPT)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from pydantic import Field

from mmrl.advantage.types import Floats, Ints, Scored, Shaping
from mmrl.errors import UserError


def majority(answers: Sequence[str | None], group: Ints) -> Floats:
    """1 where a sample's answer is the most frequent one of its group, else 0; `(N,)` float64.

    Of equally frequent answers the one seen first wins. None (no answer could be parsed) has no vote and never agrees;
    in a group of such samples all are 0. Source: MM-UPT (arXiv 2505.22453), where the missing answer may win.
    """
    agrees = np.zeros(len(group))
    for key in np.unique(group):
        rows = np.flatnonzero(group == key).tolist()
        votes: dict[str, int] = {}
        for row in rows:
            answer = answers[row]
            if answer is not None:
                votes[answer] = votes.get(answer, 0) + 1
        if votes:
            winner = max(votes, key=lambda answer: votes[answer])  # the first of the largest: dicts keep their order
            agrees[[row for row in rows if answers[row] == winner]] = 1
    return agrees


def parsed(scored: Scored) -> list[str | None]:
    """The answers (N), those of unscorable samples None. Raises UserError when no sample says what its answer is."""
    if scored.answers is None:
        raise UserError(
            f"none of the {len(scored)} samples says in its meta['answer'] what its answer is (None: not found), which a "
            "shaping compares; use a reward that parses answers"
        )
    return [a if ok else None for a, ok in zip(scored.answers, scored.scorable, strict=True)]


class Majority(Shaping):
    """Adds `weight` times the agreement with the group's majority answer to the reward; no target is read."""

    reads_answers: ClassVar[bool] = True

    weight: float = Field(default=1.0, ge=0)

    def before(self, scored: Scored) -> Scored:
        if not self.weight:
            return scored
        return replace(scored, reward=scored.reward + self.weight * majority(parsed(scored), scored.group))
