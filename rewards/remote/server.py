"""The HTTP side of a reward server (extra `serve`): one POST that scores, three GETs that say how it is."""

from __future__ import annotations

import hashlib
import hmac
import logging
import signal
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import anyio
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

from mmrl.rewards.remote.connection import is_loopback
from mmrl.rewards.remote.contract import Code, ErrorBody, Problem
from mmrl.rewards.remote.intake import read
from mmrl.rewards.remote.service import STATUS, Service, ServiceError

log = logging.getLogger("mmrl.serve")


class Impatient(H11Protocol):
    """A connection that is closed when there is no whole head of a request `seconds` after it was made, or after the last answer."""

    seconds = 30.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # of a socket that was bound before, asyncio does not: an answer in two pieces would wait 40 ms for the client
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.loop.call_later(self.seconds, self._close_unused, None)

    def on_response_complete(self) -> None:
        self.loop.call_later(self.seconds, self._close_unused, self.cycle)
        super().on_response_complete()

    def _close_unused(self, last: Any) -> None:
        if self.cycle is last:
            self.transport.close()


def make_app(service: Service, token: str | None, max_waiting: int = 64, body_seconds: float = 60.0) -> FastAPI:
    """The application. With a `token` every path but /healthz wants `Authorization: Bearer TOKEN`; without one, none is for web
    pages: their requests (`Origin`), and those by a name that is not of this machine, are refused. More than `max_waiting` requests
    at a time are answered with 503 and Retry-After, a body that takes longer than `body_seconds` with 408."""
    waiting, threads = anyio.Semaphore(max_waiting), anyio.CapacityLimiter(max_waiting)
    expected = None if token is None else hashlib.sha256(f"Bearer {token}".encode()).digest()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = threading.Thread(target=_load, args=(service,), daemon=True)
        loading.start()
        yield

    app = FastAPI(title="mmrl rewards", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guarded(request: Request, call_next: Any) -> Response:
        if expected is not None and request.url.path != "/healthz":
            given = request.headers.get("authorization", "")
            # of hashes, so that neither the letters nor the length of the token show in the time that it takes
            if not hmac.compare_digest(hashlib.sha256(given.encode()).digest(), expected):
                return failure("unauthorised", "a bearer token is needed, and this one is missing or wrong")
        elif expected is None and not _is_local(request):
            return failure(
                "bad_request",
                "a server without a token answers only programs that call it by localhost or 127.0.0.1; give it a token for others",
            )
        return await call_next(request)

    @app.exception_handler(ServiceError)
    async def refused(_: Request, error: ServiceError) -> Response:
        return answer(error.problem)

    @app.exception_handler(HTTPException)
    async def elsewhere(request: Request, error: HTTPException) -> Response:
        problem = Problem(code="bad_request", message=f"{request.method} of this path: {error.detail}")
        return answer(problem, error.status_code)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        log.exception("a request ended in an error")
        return failure("internal", type(error).__name__, retryable=True)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "up"}

    @app.get("/readyz")
    async def readyz() -> Response:
        service.check_ready()
        return JSONResponse({"status": "ready"})

    @app.get("/v1/info")
    async def info() -> Response:
        service.check_ready()
        return JSONResponse(service.info().model_dump(mode="json"))

    @app.post("/v1/score")
    async def score(request: Request) -> Response:
        try:
            waiting.acquire_nowait()
        except anyio.WouldBlock:
            return failure("busy", f"{max_waiting} requests are waiting already", retryable=True)
        try:
            message = await read(request, service.limits, body_seconds)
            found = await anyio.to_thread.run_sync(lambda: service.score(*message()), limiter=threads)
        finally:
            waiting.release()
        return Response(found, media_type="application/json")

    return app


def _is_local(request: Request) -> bool:
    """Not of a web page in this machine's browser: its script may send a form to any server, and read the answer where the name of
    its host was made to point here."""
    try:
        host = urlsplit("//" + request.headers.get("host", "")).hostname or ""
    except ValueError:  # brackets that do not close
        return False
    return "origin" not in request.headers and is_loopback(host)


def _load(service: Service) -> None:
    """Load beside the running server; a server whose rewards cannot be loaded ends."""
    service.load()
    if service.failure is not None:
        log.error(service.failure)
        signal.raise_signal(signal.SIGTERM)


def failure(code: Code, message: str, retryable: bool = False) -> Response:
    """An answer that is not 200."""
    return answer(Problem(code=code, message=message, retryable=retryable))


def answer(problem: Problem, status: int | None = None) -> Response:
    """As `failure`, of a problem; a busy server says when to come again, and one that waited for a body ends the connection."""
    headers = {"busy": {"Retry-After": "1"}, "timeout": {"Connection": "close"}}.get(problem.code)
    content = ErrorBody(error=problem).model_dump(mode="json")
    return JSONResponse(content, status_code=status or STATUS.get(problem.code, 500), headers=headers)
