"""The same work asked for by several threads at a time, done once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Flights:
    """Work that is under way, by key; begins anew in a forked process, where the threads that did it are not."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.process, self.guard = os.getpid(), threading.Lock()
        self.under_way: dict[str, Future[Any]] = {}

    def once(self, key: str, work: Callable[[], Any]) -> tuple[Any, bool]:
        """What `work` gives or raises, and whether it was this call's own: calls of the same key at the same time share one."""
        if self.process != os.getpid():
            self._begin()
        with self.guard:
            flight = self.under_way.get(key)
            if flight is None:
                own = self.under_way[key] = Future()
        if flight is not None:
            return flight.result(), False
        try:
            own.set_result(work())
        except BaseException as error:
            own.set_exception(error)
        finally:
            with self.guard:
                del self.under_way[key]
        return own.result(), True
