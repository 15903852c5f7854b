"""What every client of a server shares: a pool of connections and threads per process, tokens, and when to ask again."""

from __future__ import annotations

import ipaddress
import os
import random
import socket
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from mmrl.errors import UserError
from mmrl.rewards.remote.outage import Outage

RETRIED = (408, 425, 429, 500, 502, 503, 504)
LONGEST_PAUSE = 30.0
IDLE = 3.0
"""Seconds after which an idle connection is not used again; servers close theirs after 5 or more."""


class Waiting:
    """Who waits for answers, and the event that tells them all to give up."""

    def __init__(self) -> None:
        self.event, self.waiting, self.guard = threading.Event(), 0, threading.Lock()

    @contextmanager
    def begin(self) -> Iterator[threading.Event]:
        """The event for as long as somebody waits; a new one where the last was set and nobody waits any more."""
        with self.guard:
            if not self.waiting and self.event.is_set():
                self.event = threading.Event()
            self.waiting += 1
            event = self.event
        try:
            yield event
        finally:
            with self.guard:
                self.waiting -= 1


class Sockets:
    """The sockets of a client that are open, so that a thread that waits at one of them can be woken."""

    def __init__(self) -> None:
        self.open: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self.guard = threading.Lock()

    def follow(self, request: Any) -> None:
        """An httpx hook: take in the sockets that are opened for a request."""
        request.extensions["trace"] = self._opened

    def cut(self) -> None:
        """End all connections: who waits for an answer gets an error now."""
        with self.guard:
            for one in self.open:
                with suppress(OSError):  # closed already
                    one.shutdown(socket.SHUT_RDWR)

    def _opened(self, event: str, info: Mapping[str, Any]) -> None:
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            with self.guard:
                self.open.add(info["return_value"].get_extra_info("socket"))


@dataclass
class Own:
    """What one process has for itself."""

    process: int
    client: Any
    pool: ThreadPoolExecutor
    sockets: Sockets
    waiting: Waiting = field(default_factory=Waiting)
    outage: Outage = field(default_factory=Outage)


class Connections:
    """An httpx client and a pool of `concurrency` threads, made when they are first used, and again after a fork: a child that
    shared its parent's connections would read the parent's answers, and its threads are not there."""

    def __init__(self, concurrency: int, name: str, token: str | None = None, **options: Any) -> None:
        self.httpx = httpx()
        self.concurrency, self.name, self.options = concurrency, name, options
        self.headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self.made: Own | None = None
        self.guard: tuple[int, threading.Lock] = (os.getpid(), threading.Lock())

    @property
    def client(self) -> Any:
        """The httpx client of this process; it follows no redirects and reads no proxies from the environment."""
        return self._own().client

    @property
    def pool(self) -> ThreadPoolExecutor:
        """The threads of this process."""
        return self._own().pool

    @property
    def stop(self) -> threading.Event:
        """Set when nobody waits for answers any more: nothing is then asked again, until somebody begins anew (`waiting`)."""
        return self._own().waiting.event

    def give_up(self) -> None:
        """Set `stop`, and end the requests that are under way."""
        own = self._own()
        own.waiting.event.set()
        own.sockets.cut()

    @property
    def waiting(self) -> Waiting:
        """Who waits, in this process."""
        return self._own().waiting

    @property
    def outage(self) -> Outage:
        """What this process says of a server that does not answer."""
        return self._own().outage

    def _own(self) -> Own:
        if self.guard[0] != os.getpid():  # the lock may have been held by a thread of the parent
            self.guard = (os.getpid(), threading.Lock())
        with self.guard[1]:
            if self.made is None or self.made.process != os.getpid():
                sockets = Sockets()
                client = self.httpx.Client(
                    headers=self.headers,
                    limits=self.httpx.Limits(max_connections=self.concurrency, keepalive_expiry=IDLE),
                    trust_env=False,
                    follow_redirects=False,
                    event_hooks={"request": [sockets.follow]},
                    **self.options,
                )
                pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix=self.name)
                self.made = Own(os.getpid(), client, pool, sockets)
            return self.made


def httpx() -> Any:
    """The module. Raises UserError where it is not installed."""
    try:
        import httpx as found
    except ImportError as error:
        raise UserError("remote rewards need httpx: pip install 'mmrl[serve]'") from error
    return found


def base_url(value: str, example: str) -> str:
    """A URL without its last slash. Raises ValueError for what is no http URL, and for one with a password, a query or a
    fragment: it would be shown in messages."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"got {value!r}; expected {example}")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError(
            f"got a URL of {parts.hostname} with more than scheme, host, port and path; expected {example}"
        )
    return value.rstrip("/")


def bearer(variable: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """The token in an environment variable; None where it is not set. Raises UserError (without the token) for one that no header can hold."""
    token = environment.get(variable)
    if not token:
        return None
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise UserError(
            f"the token in {variable} has blanks, line ends or characters that are not ASCII; expected letters, digits and signs alone"
        )
    return token


def is_here(url: str) -> bool:
    """Whether a URL is of this machine."""
    return is_loopback(urlsplit(url).hostname or "")


def is_loopback(host: str) -> bool:
    """Whether a name or an address of a host is of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def pause(tries: int, backoff: float, asked: float | None = None) -> float:
    """Seconds to wait after `tries` tries: `backoff`, doubled for each further one, drawn between half and whole; at least as
    long as the server `asked` for."""
    own = min(LONGEST_PAUSE, backoff * 2.0 ** min(tries - 1, 30)) * random.uniform(0.5, 1.0)
    return max(own, asked or 0.0)


def asked_to_wait(header: str | None) -> float | None:
    """Seconds that `Retry-After` asks for, a number or a date; None without one."""
    if not header:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None
