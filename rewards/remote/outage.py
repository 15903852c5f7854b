"""Words about a server that gives no usable answers: one line when that lasts, and one when it is over."""

from __future__ import annotations

import logging
import threading
import time

QUIET = 5.0
"""Seconds without a usable answer of which nothing is said: a server that is busy or starts again is soon back."""

log = logging.getLogger("mmrl.rewards.remote")


class Outage:
    """What all requests to one server together see of it; may be used from several threads."""

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.heard = -float("inf")
        self.since: float | None = None
        self.told = False

    def failed(self, server: str, problem: str, began: float, wait: float, going_on: str) -> None:
        """A try that `began` then (of the monotonic clock) ended in a `problem`, and the next follows in `wait` seconds; `going_on`
        says how long. Logs a warning once an outage lasts, or would before that next try."""
        with self.guard:
            if self.since is None:
                self.since = max(began, self.heard)
            lasted = time.monotonic() - self.since
            if self.told or max(lasted, wait) < QUIET:
                return
            self.told = True
        log.warning("%s gives no usable answer for %.0f s (%s); %s", server, lasted, problem, going_on)

    def answered(self, server: str) -> None:
        """A usable answer came. Logs a warning where an outage was told of."""
        with self.guard:
            since, told = self.since, self.told
            self.heard, self.since, self.told = time.monotonic(), None, False
        if told and since is not None:
            log.warning("%s answers again, after %.0f s", server, time.monotonic() - since)
