"""Start N processes of a command on this machine, pass signals on, and end with one exit code."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

EXPECTED = "MMRL_NUM_PROCESSES"
"""Tells the workers of `mmrl train --nproc N` the number of processes that was asked for."""
ERRORS = "MMRL_ERRORS"
"""Folder in which workers other than rank 0 leave the one line that says why they stopped."""

GRACE_SECONDS = 20.0
PR_SET_PDEATHSIG = 1


def run(arguments: Sequence[str], processes: int) -> int:
    """Run `python -m mmrl ARGUMENTS` in `processes` processes joined by torch.distributed's environment variables.

    When one fails the others are stopped. Returns the first non-zero exit code, or 0.
    """
    from mmrl.distributed import usable_cores  # torch, which `mmrl --help` need not wait for

    with tempfile.TemporaryDirectory() as errors:
        base = {
            **os.environ,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, usable_cores() // processes))),
            EXPECTED: str(processes),
            ERRORS: errors,
        }
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "mmrl", *arguments],
                env={**base, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                preexec_fn=_die_with_parent,
            )
            for rank in range(processes)
        ]
        code = _wait(workers)
        files = sorted(Path(errors).iterdir(), key=lambda file: int(file.name))
        for line in others({file.name: file.read_text(encoding="utf-8") for file in files}):
            print(line, file=sys.stderr)
    return code


def others(said: Mapping[str, str]) -> list[str]:
    """What is to be told beside the line of rank 0, which prints its own: those `said` by other ranks, by rank, that no rank before
    said, nor told about this one ("error: rank 1: ...")."""
    lines = list(said.values())
    return [
        f"rank {rank}: {line}"
        for place, (rank, line) in enumerate(said.items())
        if rank != "0" and not any(line.removeprefix("error: ") in one for one in lines[:place])
    ]


def _die_with_parent() -> None:
    """Where the kernel offers it (Linux): a worker is killed when its launcher is, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def report_error(message: str) -> None:
    """Print a worker's error line, or leave it to the launcher where rank 0 prints the same one."""
    rank, folder = os.environ.get("RANK", "0"), os.environ.get(ERRORS)
    if folder is None or rank == "0":
        print(message, file=sys.stderr)
    if folder is not None:
        Path(folder, rank).write_text(message, encoding="utf-8")


def _wait(workers: Sequence[subprocess.Popen[bytes]]) -> int:
    def forward(number: int, frame: Any) -> None:
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(number)

    old_term = signal.signal(signal.SIGTERM, forward)
    # A terminal sends SIGINT to the workers as well; the launcher only has to outlive them.
    old_int = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        failed_at: float | None = None
        code = 0
        while any(worker.poll() is None for worker in workers):
            codes = [worker.returncode for worker in workers if worker.returncode]
            if codes and failed_at is None:
                failed_at, code = time.monotonic(), codes[0]
            if failed_at is not None and time.monotonic() - failed_at > GRACE_SECONDS:
                for worker in workers:
                    if worker.poll() is None:
                        worker.kill()
            time.sleep(0.05)
        return code or next((worker.returncode for worker in workers if worker.returncode), 0)
    finally:
        signal.signal(signal.SIGTERM, old_term)
        signal.signal(signal.SIGINT, old_int)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
