"""One request to a reward server, asked until there is a right answer: deadline, retries with backoff, and every answer checked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from mmrl.rewards.remote.connection import RETRIED, Connections, asked_to_wait, pause
from mmrl.rewards.remote.contract import PROTOCOL, ErrorBody, ScoreRequest, ScoreResponse
from mmrl.rewards.remote.meter import Meter
from mmrl.rewards.remote.pack import Packed

MOST_BYTES = 256 << 20
"""An answer that is longer is none."""


class Broken(Exception):
    """An answer that is not what was asked for; `passing` says whether asking again may help."""

    def __init__(self, text: str, passing: bool = True, wait: float | None = None) -> None:
        super().__init__(text)
        self.passing, self.wait = passing, wait


@dataclass(frozen=True)
class Patience:
    """Seconds: until a connection stands, between two pieces of an answer, for all tries of a request together, and before the
    second try."""

    connect: float
    read: float
    deadline: float
    backoff: float


def ask(
    connections: Connections,
    url: str,
    request: ScoreRequest,
    packed: Sequence[Packed],
    multipart: bool,
    patience: Patience,
    check: Callable[[ScoreRequest, ScoreResponse], None],
    meter: Meter,
    stop: threading.Event,
) -> ScoreResponse:
    """The answer to a request, by the same request id however often it is asked. `check` raises Broken for a wrong answer.

    Raises Broken when trying again makes no sense, the deadline is over, or `stop` is set.
    """
    if stop.is_set():
        raise Broken("given up before it was asked", passing=False)
    body = content(request, packed, multipart)
    began = time.monotonic()
    tries = 0
    server, outage = f"reward server {url}", connections.outage
    while True:
        tries += 1
        started = time.monotonic()
        try:
            answer = once(connections, url, body, patience, began + patience.deadline)
            check(request, answer)
            outage.answered(server)
            meter.took(time.monotonic() - began)
            return answer
        except Broken as error:
            if not error.passing:
                raise
            wait = pause(tries, patience.backoff, error.wait)
            if time.monotonic() + wait >= began + patience.deadline:
                raise Broken(f"{error} (after {tries} tries)") from error
            if not stop.is_set():
                left = began + patience.deadline - time.monotonic()
                outage.failed(server, str(error), started, wait, f"trying for up to {left:.0f} s more")
            meter.add("retries")
            if stop.wait(wait):
                raise Broken(f"{error} (given up after {tries} tries)") from error


def content(request: ScoreRequest, packed: Sequence[Packed], multipart: bool) -> dict[str, Any]:
    """The body as httpx takes it; what has its default value is left out."""
    body = request.model_dump_json(exclude_defaults=True).encode()
    if not multipart:
        return {"content": body, "headers": {"Content-Type": "application/json"}}
    parts = {name: part for one in packed for name, part in one.parts.items()}
    files = [(name, (name, contents, mime)) for name, (mime, contents) in parts.items()]
    return {"files": [("request", ("request", body, "application/json")), *files]}


def once(connections: Connections, url: str, body: dict[str, Any], patience: Patience, end: float) -> ScoreResponse:
    """One try, over at `end` (of the monotonic clock) even where the answer comes in drops. Raises Broken."""
    httpx = connections.httpx
    left = max(0.1, end - time.monotonic())
    timeout = httpx.Timeout(min(patience.read, left), connect=min(patience.connect, left))
    try:
        with connections.client.stream("POST", f"{url}/v1/score", timeout=timeout, **body) as reply:
            found = received(reply, end)
    except httpx.RequestError as error:
        raise Broken(f"{type(error).__name__}: {error}") from error
    if reply.status_code != 200:
        wait = asked_to_wait(reply.headers.get("retry-after"))
        raise Broken(said(reply, found), reply.status_code in RETRIED, wait)
    try:
        return ScoreResponse.model_validate_json(found)
    except ValidationError as error:
        raise Broken(f"an answer that is not {PROTOCOL}: {unlike(error, found)}") from error


def received(reply: Any, end: float) -> bytes:
    """The body of an answer, as it came over the wire. Raises Broken where it is not there at `end` or has no end."""
    found = bytearray()
    for piece in reply.iter_raw():
        found += piece
        if len(found) > MOST_BYTES:
            raise Broken(f"an answer of more than {MOST_BYTES} bytes", passing=False)
        if time.monotonic() > end:
            raise Broken("an answer that came too slowly for the deadline", passing=False)
    return bytes(found)


def unlike(error: ValidationError, body: bytes) -> str:
    """What of a body is not as the contract says: the first field, or the whole of one that is not JSON."""
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return f"the {len(body)} bytes that the server sent are not one JSON object ({first['msg'][:200]})"
    return f"{str(first['loc'])[:200]}: {first['msg'][:200]}"


def said(reply: Any, body: bytes) -> str:
    """What an answer that is not 200 says."""
    try:
        return f"{reply.status_code}: {ErrorBody.model_validate_json(body).error.message[:500]}"
    except ValidationError:
        return f"{reply.status_code} {reply.reason_phrase}"
