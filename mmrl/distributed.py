"""Processes: set-up, the collectives that the trainer needs, and nothing else.

Gradients are summed over ranks once per optimizer step, after all micro-batches, instead of inside the backward pass:
losses are already divided by global counts, ranks may hold different numbers of samples, and no rank can hang in a
collective that another one skipped. Every function is a no-op with one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import psutil
import torch
import torch.distributed as dist

# Its functions keep the process group that is there when it is imported as their default, for ever: imported by some library
# after the group began, it would keep the group's threads alive into the end of the interpreter, which may abort the process.
import torch.distributed.nn.functional
from accelerate import PartialState
from torch import Tensor

from mmrl.errors import RunError
from mmrl.launch import EXPECTED


class Group:
    """The processes of this run, seen from one of them."""

    def __init__(self, device: str = "auto", expected: int | None = None, threads: int | None = None) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise RunError(
                "run.device is cuda, but torch finds no CUDA device here; set run.device=cpu or see `mmrl doctor`"
            )
        use_cpu = device == "cpu" or not torch.cuda.is_available()
        self.state = PartialState(cpu=use_cpu)
        self.rank: int = self.state.process_index
        self.world: int = self.state.num_processes
        self.device: torch.device = torch.device("cpu") if use_cpu else self.state.device
        _refuse_wrong_count(self.world, expected)
        local = int(os.environ.get("LOCAL_WORLD_SIZE", self.world))
        if threads is not None:
            torch.set_num_threads(threads)
        elif use_cpu and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, usable_cores() // local))

    @property
    def main(self) -> bool:
        return self.rank == 0

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum `.grad` over ranks in flat buckets; a parameter without gradient on this rank counts as zero."""
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for grads in by_dtype.values() if self.world > 1 else ():
            flat = torch.cat([grad.reshape(-1) for grad in grads])
            dist.all_reduce(flat)
            for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
                grad.copy_(part.view_as(grad))

    def gather(self, value: Any) -> list[Any]:
        """One picklable object per rank, in rank order, on every rank (small host data only)."""
        if self.world == 1:
            return [value]
        out: list[Any] = [None] * self.world
        dist.all_gather_object(out, value)
        return out

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Concatenate `(n_r, ...)` tensors of all ranks along the first axis; the n_r may differ. Returns it on the CPU."""
        return torch.cat([part.cpu() for part in self.gather(rows.cpu())])

    def any(self, flag: bool) -> bool:
        """True on every rank if it is true on one."""
        return any(self.gather(bool(flag)))

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        return self.gather(value)[0]

    def raise_together(self, problem: Exception | None) -> None:
        """Raise on every rank when one of them has a problem, so that none waits in a collective for ever."""
        reasons = self.gather(None if problem is None else f"{problem}")
        if problem is not None:
            raise problem
        for rank, reason in enumerate(reasons):
            if reason is not None:
                raise RunError(reason if rank == 0 else f"rank {rank}: {reason}")

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def close(self) -> None:
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def slice_of(count: int, rank: int, world: int) -> slice:
    """The contiguous part of `count` rows that `rank` holds; sizes differ by at most one."""
    return slice(rank * count // world, (rank + 1) * count // world)


def slice_of_groups(group: Sequence[int], rank: int, world: int) -> slice:
    """As `slice_of`, without cutting a group; `group (N,)` names the group of each row, the rows of one being together."""
    starts = [row for row, one in enumerate(group) if row == 0 or one != group[row - 1]]
    part = slice_of(len(starts), rank, world)
    ends = [*starts, len(group)]
    return slice(ends[part.start], ends[part.stop])


def _refuse_wrong_count(world: int, expected: int | None) -> None:
    asked = [
        (expected, "run.num_processes"),
        (_as_int(os.environ.get(EXPECTED)), "--nproc"),
        (launcher_request(), "the launcher's --num_processes"),
    ]
    for count, by in asked:
        if count is not None and count != world:
            raise RunError(
                f"{count} processes were asked for ({by}), but {world} started. Start them with `mmrl train CONFIG --nproc {count}` "
                f"or `torchrun --nproc_per_node {count} -m mmrl train CONFIG` (`accelerate launch --cpu` starts only one process)"
            )


def launcher_request() -> int | None:
    """The `--num_processes` of an `accelerate launch` that started this process directly.

    Its CPU path starts one process whatever was asked and leaves no trace in the environment, so its command line is read.
    """
    try:
        parent = psutil.Process().parent()
        words = parent.cmdline() if parent is not None else []
    except psutil.Error:
        return None
    return requested_in(words)


def requested_in(words: Sequence[str]) -> int | None:
    """`accelerate launch ... --num_processes N ...` -> N; None for any other command line."""
    if not any("accelerate" in word for word in words[:3]) or "launch" not in "".join(words[:4]):
        return None
    for index, word in enumerate(words):
        name, _, value = word.partition("=")
        if name.replace("-", "_") == "__num_processes":
            return _as_int(value or (words[index + 1] if index + 1 < len(words) else None))
    return None


def _as_int(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None
