"""What the scores of the last steps say about the rewards themselves: one that no longer tells samples apart, two that say the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import combinations

import numpy as np

from mmrl.advantage.types import Floats

WINDOW = 20
"""Steps that are looked at together."""
SATURATED = 0.95
"""From this share of samples with one and the same score on a reward is saturated."""
SAME, AGAINST = 0.98, -0.9
"""Correlations, of the scores times the signs of their weights, from which on two rewards count one thing twice, or pull against
each other."""
FEWEST = 20
"""Samples below which nothing is said."""


class Alarms:
    """Watches the scores of trained rewards over `WINDOW` steps; each thing is said once, in a sentence that says what to do."""

    def __init__(self, names: tuple[str, ...], weights: tuple[float, ...]) -> None:
        self.names = names
        self.signs = {k: float(np.sign(weight)) for k, weight in enumerate(weights) if weight}
        self.steps: deque[Floats] = deque(maxlen=WINDOW)
        self.said: set[tuple[int, ...]] = set()

    def add(self, values: Floats) -> list[str]:
        """Take in the scores `(N, R)` of a step, NaN where there is none; returns what has become true and was not said before."""
        self.steps.append(values)
        if len(self.steps) < WINDOW:
            return []
        seen = np.concatenate(self.steps)
        fresh = [(key, line) for key, line in self._found(seen) if key not in self.said]
        self.said.update(key for key, _ in fresh)
        return [line for _, line in fresh]

    def _found(self, seen: Floats) -> Iterator[tuple[tuple[int, ...], str]]:
        for k in self.signs:
            scores = seen[np.isfinite(seen[:, k]), k]
            most, share = commonest(scores)
            if len(scores) >= FEWEST and share >= SATURATED:
                yield (
                    (k,),
                    f"reward '{self.names[k]}' gave {most:g} to {share:.0%} of {len(scores)} samples of the last {WINDOW} steps, so that "
                    "groups have little to compare; make it or the prompts harder, or leave it out",
                )
        for a, b in combinations(self.signs, 2):
            both = seen[np.isfinite(seen[:, a]) & np.isfinite(seen[:, b])]
            r = correlation(both[:, a], both[:, b]) if len(both) >= FEWEST else None
            pull = 0.0 if r is None else r * self.signs[a] * self.signs[b]
            if r is not None and (pull >= SAME or pull <= AGAINST):
                what = "count one thing twice" if pull > 0 else "pull against each other"
                yield (
                    (a, b),
                    f"rewards '{self.names[a]}' and '{self.names[b]}' {what}: their correlation over the last {WINDOW} steps is "
                    f"{r:.2f}; leave one out, or weigh them with that in mind",
                )


def commonest(scores: Floats) -> tuple[float, float]:
    """The score that most of `scores (N,)` have, and their share; (NaN, 0) of none."""
    if not len(scores):
        return float("nan"), 0.0
    values, counts = np.unique(scores, return_counts=True)
    return float(values[counts.argmax()]), float(counts.max() / len(scores))


def correlation(a: Floats, b: Floats) -> float | None:
    """Pearson's, over samples that have both scores; None where one of them does not vary."""
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 2 or not np.ptp(a[both]) or not np.ptp(b[both]):
        return None
    x, y = (one[both] / np.abs(one[both]).max() for one in (a, b))  # so that squares fit
    with np.errstate(invalid="ignore", divide="ignore"):
        found = float(np.corrcoef(x, y)[0, 1])
    return found if np.isfinite(found) else None
