"""The gate of checklists against loops over samples, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmrl.advantage.checklist import ChecklistGate
from mmrl.advantage.types import Scored


def naive(
    advantage: list[float], score: list[float], group: list[int], parent: list[int], threshold: float
) -> list[float]:
    """A sample keeps its advantage unless the scored answers to its group's sub-questions average below the threshold."""
    found = []
    for own, number in zip(advantage, group, strict=True):
        total, count = 0.0, 0
        for value, of in zip(score, parent, strict=True):
            if of == number and not math.isnan(value):
                total, count = total + value, count + 1
        found.append(0.0 if count and total / count < threshold else own)
    return found


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_the_gate(threshold: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = [(number, -1, 5) for number in range(6)]  # group, parent, samples
    groups += [(10 + 2 * parent + k, parent, 3) for parent in (0, 2, 3, 5) for k in range(2)]
    rows = [(number, parent) for number, parent, size in groups for _ in range(size)]
    group, parent = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    score = rng.choice([0.0, 0.0, 0.25, 0.5, 1.0, 1.0, np.nan], size=len(rows))
    score[parent == 5] = np.nan
    advantage = np.where(np.isnan(score), 0.0, rng.normal(size=len(rows)))
    names = ("right", "form")
    right = np.stack([score, rng.random(len(rows))], axis=1)
    for accuracy, total in ((None, score), ("right", score)):
        scored = Scored(total, group, components=right, names=names, parent=parent)
        found = ChecklistGate(threshold=threshold, accuracy=accuracy)(advantage, scored)
        expected = naive(advantage.tolist(), score.tolist(), group.tolist(), parent.tolist(), threshold)
        np.testing.assert_array_equal(found, expected)
    if threshold == 1.0:
        assert (found != advantage).any() and found[group == 5].any() and found[group == 1].any()
