"""Numbers of one step, summed over chunks and ranks."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from mmrl.distributed import Group
from mmrl.objective.metrics import Metric, Metrics, finish, merge


class Meter:
    """Collects means, maxima and plain values during a step; `reduce` makes them global."""

    def __init__(self) -> None:
        self.collected: Metrics = {}
        self.values: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.beside: dict[str, float] = {}
        """Further numbers of this process that are not reproducible (latencies, retries)."""
        self.started = time.perf_counter()

    def metrics(self, metrics: Mapping[str, Metric]) -> None:
        """Local means, sums and maxima, as an objective returns them."""
        self.collected = merge(self.collected, metrics)

    def add(self, name: str, total: float, count: float = 1.0) -> None:
        """A local sum over `count` items; the result is the global mean."""
        self.metrics({name: (total, count)})

    def set(self, values: Mapping[str, float]) -> None:
        """Values that are the same on every rank already."""
        self.values.update(values)

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.spent(phase, time.perf_counter() - begin)

    def spent(self, phase: str, seconds: float) -> None:
        """Seconds of a phase that were measured elsewhere."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def reduce(self, group: Group) -> dict[str, float]:
        """Global means, sums, maxima and values by name, in a fixed order."""
        everywhere: Metrics = {}
        for part in group.gather(self.collected):
            everywhere = merge(everywhere, part)
        return dict(self.values) | dict(sorted(finish(everywhere).items()))

    def clock(self, samples: int, device: torch.device) -> dict[str, float]:
        """Seconds per phase and in all, what else is `beside`, samples/s, peak memory of this process in MB. Not reproducible by nature."""
        total = time.perf_counter() - self.started
        clock = {f"seconds/{name}": value for name, value in self.seconds.items()} | self.beside
        clock |= {"seconds": total, "samples_per_second": samples / total, "memory_mb": peak_memory_mb(device)}
        return clock


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MB: of the CUDA allocator on a CUDA device, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    scale = 1.0 if sys.platform == "darwin" else 1024.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6
