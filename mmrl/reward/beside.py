"""Scoring while the next part of a step is drawn: nothing that is trained on gets older by it, the update waits for all scores."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import torch

from mmrl.rollout import Draw, Sample, Scores

Scoring = Future[tuple[Scores, float]]
"""Scores to come, and the seconds they took."""


class Scorer:
    """Calls `score(samples, group)` at once, or with `beside` in one thread of its own, one call after another.

    A process that ends waits for the call under way, and for no more after `give_up`. What a reward raises beside is raised where its
    scores are asked for.
    """

    def __init__(
        self,
        score: Callable[[Sequence[Sample], Sequence[int]], Scores],
        beside: bool,
        device: torch.device | None = None,
    ) -> None:
        """`device`: the accelerator of this process, which a thread must be told."""
        self.score, self.beside = score, beside
        tell = (
            functools.partial(torch.cuda.set_device, device) if device is not None and device.type == "cuda" else None
        )
        self.pool = ThreadPoolExecutor(1, "score", tell) if beside else None

    def begin(self, samples: Sequence[Sample], group: Sequence[int]) -> Scoring:
        """Score `samples`, which belong to the scorer until the scores are there."""
        if self.pool is not None:
            return self.pool.submit(self._timed, samples, group)
        done: Scoring = Future()
        done.set_result(self._timed(samples, group))
        return done

    def give_up(self) -> None:
        """Begin nothing more of what waits in the thread."""
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)

    def _timed(self, samples: Sequence[Sample], group: Sequence[int]) -> tuple[Scores, float]:
        began = time.perf_counter()
        return self.score(samples, group), time.perf_counter() - began


def in_parts(draws: Sequence[Draw], parts: int) -> list[list[Draw]]:
    """Whole groups in `parts` runs of draws, as even as may be, in order; fewer where there are fewer groups. Sub-questions go with the
    group of their prompt, behind it."""
    groups: dict[int, list[Draw]] = {}
    for draw in draws:
        groups.setdefault(draw.group if draw.parent is None else draw.parent, []).append(draw)
    own = list(groups.values())
    number = min(parts, len(own))
    edges = [round(k * len(own) / number) for k in range(number + 1)]
    return [[draw for group in own[a:b] for draw in group] for a, b in pairwise(edges)]
