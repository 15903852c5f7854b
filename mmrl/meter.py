"""Numbers of one step, summed over chunks and ranks."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from mmrl.distributed import Group


class Meter:
    """Collects means, maxima and plain values during a step; `reduce` makes them global."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, float]] = {}
        self.peaks: dict[str, float] = {}
        self.totals: dict[str, float] = {}
        self.values: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.started = time.perf_counter()

    def add(self, name: str, total: float, count: float = 1.0) -> None:
        """A local sum over `count` items; the result is the global mean."""
        old_total, old_count = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = (old_total + total, old_count + count)

    def peak(self, name: str, value: float) -> None:
        self.peaks[name] = max(self.peaks.get(name, value), value)

    def total(self, name: str, value: float) -> None:
        """A plain sum over chunks and ranks."""
        self.totals[name] = self.totals.get(name, 0.0) + value

    def set(self, values: Mapping[str, float]) -> None:
        """Values that are the same on every rank already."""
        self.values.update(values)

    def metrics(self, metrics: Mapping[str, tuple[Any, Any]]) -> None:
        """The metrics of an objective: name -> (sum, count), ("sum", value) or ("max", value)."""
        for name, (first, second) in metrics.items():
            if first == "max":
                self.peak(name, float(second))
            elif first == "sum":
                self.total(name, float(second))
            else:
                self.add(name, float(first), float(second))

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - begin

    def reduce(self, group: Group) -> dict[str, float]:
        """Global means, maxima and values by name, in a fixed order."""
        parts = group.gather((self.sums, self.peaks, self.totals))
        result = dict(self.values)
        for name in sorted({name for sums, _, _ in parts for name in sums}):
            pairs = [sums.get(name, (0.0, 0.0)) for sums, _, _ in parts]
            count = sum(count for _, count in pairs)
            if count:
                result[name] = sum(total for total, _ in pairs) / count
        for name in sorted({name for _, peaks, _ in parts for name in peaks}):
            result[name] = max(peaks[name] for _, peaks, _ in parts if name in peaks)
        for name in sorted({name for _, _, totals in parts for name in totals}):
            result[name] = sum(totals.get(name, 0.0) for _, _, totals in parts)
        return result

    def clock(self, samples: int, device: torch.device) -> dict[str, float]:
        """Seconds per phase and in all, samples/s, peak memory of this process in MB. Not reproducible by nature."""
        total = time.perf_counter() - self.started
        clock = {f"seconds/{name}": value for name, value in self.seconds.items()}
        clock |= {"seconds": total, "samples_per_second": samples / total, "memory_mb": peak_memory_mb(device)}
        return clock


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MB: of the CUDA allocator on a CUDA device, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    scale = 1.0 if sys.platform == "darwin" else 1024.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6
