"""What a client of a server counts between two lines of the log."""

from __future__ import annotations

import os
import threading
from collections import Counter, deque

import numpy as np

MOST = 4096
"""Latencies that are kept for the quantiles."""


class Meter:
    """Counts and latencies since the last `take`; may be used from several threads, and begins anew in a forked process."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.process, self.guard = os.getpid(), threading.Lock()
        self.counts: Counter[str] = Counter()
        self.total: Counter[str] = Counter()
        self.seconds: deque[float] = deque(maxlen=MOST)

    def add(self, name: str, count: int = 1) -> None:
        """Count something."""
        self._check()
        with self.guard:
            self.counts[name] += count
            self.total[name] += count

    def took(self, seconds: float) -> None:
        """How long an answer took, from the first try on."""
        self._check()
        with self.guard:
            self.seconds.append(seconds)

    def take(self, *names: str) -> dict[str, float]:
        """The counts of `names`, and `latency_p50`, `latency_p95` in seconds where anything was asked; then begin anew."""
        self._check()
        with self.guard:
            found = {name: float(self.counts[name]) for name in names}
            if self.seconds:
                middle, late = np.quantile(self.seconds, [0.5, 0.95])
                found |= {"latency_p50": float(middle), "latency_p95": float(late)}
            self.counts.clear()
            self.seconds.clear()
        return found

    def _check(self) -> None:
        if self.process != os.getpid():
            self._begin()
