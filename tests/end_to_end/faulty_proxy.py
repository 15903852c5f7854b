"""A TCP proxy that spoils requests on their way to a reward server, in a fixed order, so that a client meets every fault."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = (
    "reset",
    "timeout",
    "429",
    "500",
    "truncated",
    "wrong_id",
    "nan",
    "lost_answer",
    "503",
    "other_request",
    "garbage",
)
PATIENCE = 2.0
"""Seconds that a client may wait for an answer; a request that meets "timeout" gets none for longer than that."""


class FaultyProxy:
    """Listens on a free port of this machine and forwards to `target`. Every request is first spoilt by the next fault of
    `FAULTS` where its number is a multiple of `every`; `before` is called with the number of each request."""

    def __init__(
        self, target: tuple[str, int], every: int, before: Callable[[int], None] = lambda number: None
    ) -> None:
        self.target, self.every, self.before = target, every, before
        self.count = 0
        self.met: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.closing = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._reply(*proxy.forward("GET", self.path, b"", dict(self.headers)))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with proxy.lock:
                    proxy.count += 1
                    number = proxy.count
                proxy.before(number)
                fault = FAULTS[(number // proxy.every) % len(FAULTS)] if number % proxy.every == 0 else None
                if fault is not None:
                    with proxy.lock:
                        proxy.met[fault] += 1
                self._spoilt(fault, body)

            def _spoilt(self, fault: str | None, body: bytes) -> None:
                if fault == "reset":
                    return self._reset()
                if fault == "timeout":
                    proxy.closing.wait(3 * PATIENCE)
                    return self._reset()
                if fault in ("429", "500", "503"):
                    error = json.dumps({"error": {"code": "busy", "message": "spoilt", "retryable": True}}).encode()
                    return self._reply(int(fault), error, {"Retry-After": "1"} if fault == "429" else {})
                status, answer, headers = proxy.forward("POST", self.path, body, dict(self.headers))
                if fault == "lost_answer":  # the server has scored it; the client will ask again
                    return self._reset()
                if fault == "truncated":
                    return self._reply(status, answer[: len(answer) // 2], headers, said=len(answer))
                if fault == "garbage":
                    answer = b"<html>not found, but 200</html>"
                elif fault == "other_request" and status == 200:
                    answer = json.dumps(json.loads(answer) | {"request_id": "of another"}).encode()
                elif fault in ("wrong_id", "nan") and status == 200:
                    spoilt: Any = json.loads(answer)
                    spoilt["results"][0]["id" if fault == "wrong_id" else "score"] = (
                        "x" if fault == "wrong_id" else float("nan")
                    )
                    answer = json.dumps(spoilt).encode()
                return self._reply(status, answer, headers)

            def _reply(self, status: int, body: bytes, headers: dict[str, str], said: int | None = None) -> None:
                self.send_response(status)
                for name in ("content-type", "retry-after", "Retry-After"):
                    if name in headers:
                        self.send_header(name, headers[name])
                self.send_header("Content-Length", str(len(body) if said is None else said))
                self.end_headers()
                self.wfile.write(body)
                if said is not None:  # the end never comes
                    self.close_connection = True

            def _reset(self) -> None:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()
                self.wfile = _Nothing()  # type: ignore[assignment]

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *args: None  # type: ignore[method-assign]  # resets are on purpose
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def forward(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, bytes, dict[str, str]]:
        """The server's own answer; 503 while it is down."""
        connection = http.client.HTTPConnection(*self.target, timeout=30)
        try:
            kept = {name: value for name, value in headers.items() if name.lower() in ("content-type", "authorization")}
            connection.request(method, path, body, kept)
            reply = connection.getresponse()
            return reply.status, reply.read(), {name.lower(): value for name, value in reply.getheaders()}
        except (OSError, http.client.HTTPException):
            return 503, json.dumps({"error": {"code": "busy", "message": "down", "retryable": True}}).encode(), {}
        finally:
            connection.close()

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


class _Nothing:
    closed = False

    def write(self, data: bytes) -> int:
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass
