"""math-verify in processes of its own, each comparison under a time limit."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from mmrl.errors import UserError

START_LIMIT = 300.0
"""Seconds that a process may take to import math-verify."""
PATIENCE = 20.0
"""The limit of a comparison is processor time, which the process keeps itself; the wall clock may show this many times it."""

REMEMBERED = 20_000
"""Verdicts that are kept; the samples of a group often give the same answer."""


class Compared(NamedTuple):
    """What one comparison found; `error` is "" unless there was no verdict."""

    readable: bool = False
    equal: bool = False
    error: str = ""


class MathPool:
    """`size` processes that compare answers with gold answers. They start when first needed and end with this one.

    Raises UserError if math-verify is not installed.
    """

    def __init__(self, size: int, limit: float) -> None:
        if find_spec("math_verify") is None:
            raise UserError(
                "reward 'math' needs math-verify, which is not installed; run: pip install 'mmrl[math]' "
                "(or set engine: numbers, which reads numbers and simple expressions only)"
            )
        self.limit = limit
        self._known: dict[tuple[str, str | None], Compared] = {}
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for _ in range(size):
            self._idle.put(_Worker())
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="math-verify")

    def compare(self, pairs: Sequence[tuple[str, str | None]]) -> list[Compared]:
        """One verdict per (gold, answer), in order; with None for an answer, only whether the gold can be read."""
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        verdicts = dict(zip(new, self._threads.map(self._one, new), strict=True))
        found = [verdicts.get(pair) or self._known[pair] for pair in pairs]
        if len(self._known) + len(new) > REMEMBERED:
            self._known.clear()
        self._known |= verdicts
        return found

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown()
        while not self._idle.empty():
            self._idle.get().stop()

    def _one(self, pair: tuple[str, str | None]) -> Compared:
        worker = self._idle.get()
        try:
            return worker.ask(pair[0], pair[1], self.limit)
        finally:
            self._idle.put(worker)


class _Worker:
    """One process, started again after it had to be ended."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def ask(self, gold: str, answer: str | None, limit: float) -> Compared:
        process = self._running()
        try:
            self._send(process, {"gold": gold, "answer": answer, "limit": limit})
            line = self.lines.get(timeout=max(10.0, PATIENCE * limit))
        except (queue.Empty, OSError):
            line = ""
        if not line:
            self.stop()
            return Compared(error=f"math-verify gave no verdict within {limit:g} s of processor time")
        return Compared(**json.loads(line))

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process = None

    def _running(self) -> subprocess.Popen[str]:
        if self.process is None or self.process.poll() is not None:
            self.stop()
            command = [sys.executable, str(Path(__file__).with_name("math_worker.py"))]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.lines = queue.SimpleQueue()
            threading.Thread(target=_read, args=(self.process, self.lines), daemon=True).start()
            try:
                ready = self.lines.get(timeout=START_LIMIT)
            except queue.Empty:
                ready = ""
            if not ready:
                self.stop()
                raise UserError("the math-verify process did not start; does 'import math_verify' work?")
        assert self.process is not None
        return self.process

    @staticmethod
    def _send(process: subprocess.Popen[str], request: dict[str, str | float | None]) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()


def _read(process: subprocess.Popen[str], lines: queue.SimpleQueue[str]) -> None:
    """Pass on every line, and "" when the process ends."""
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put("")
