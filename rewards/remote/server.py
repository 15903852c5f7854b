"""The HTTP side of a reward server (extra `serve`): one POST that scores, three GETs that say how it is.

Hostile input is refused before it is read or decoded: bytes are counted while they arrive, pictures are measured by their header,
only JSON and multipart bodies are taken.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from mmrl.rewards.remote.contract import Code, ErrorBody, Problem, ScoreRequest
from mmrl.rewards.remote.service import STATUS, Service, ServiceError

log = logging.getLogger("mmrl.serve")


def make_app(service: Service, token: str | None, max_waiting: int = 64) -> FastAPI:
    """The application. With a `token` every path but /healthz wants `Authorization: Bearer TOKEN`; more than `max_waiting`
    requests at a time are answered with 503 and Retry-After."""
    waiting = anyio.Semaphore(max_waiting)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = threading.Thread(target=_load, args=(service,), daemon=True)
        loading.start()
        yield

    app = FastAPI(title="mmrl rewards", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guarded(request: Request, call_next: Any) -> Response:
        if token is not None and request.url.path != "/healthz":
            given = request.headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
                return failure("unauthorised", "a bearer token is needed, and this one is missing or wrong")
        return await call_next(request)

    @app.exception_handler(ServiceError)
    async def refused(_: Request, error: ServiceError) -> Response:
        return answer(error.problem)

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
            message, parts, digest = await read(request, service.limits.max_bytes)
            found = await anyio.to_thread.run_sync(service.score, message, parts, digest)
        finally:
            waiting.release()
        return Response(found.model_dump_json(), media_type="application/json")

    return app


def _load(service: Service) -> None:
    """Load beside the running server; a server whose rewards cannot be loaded ends."""
    service.load()
    if service.failure is not None:
        log.error(service.failure)
        signal.raise_signal(signal.SIGTERM)


async def read(request: Request, most: int) -> tuple[ScoreRequest, dict[str, bytes], str]:
    """The message of a request, its binary parts, and a digest of both. Raises ServiceError for what is not taken."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "multipart/form-data"):
        raise ServiceError(
            "bad_request", f"content-type '{kind[:60]}'; expected application/json or multipart/form-data"
        )
    body = await _body(request, most)
    if kind == "application/json":
        return _message(body), {}, hashlib.sha256(body).hexdigest()
    return await _multipart(request, body)


async def _body(request: Request, most: int) -> bytes:
    """The body, refused as soon as it is known to be larger than `most` bytes."""
    too_large = ServiceError("too_large", f"the body is larger than {most} bytes")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise too_large
    found = bytearray()
    async for piece in request.stream():
        found += piece
        if len(found) > most:
            raise too_large
    return bytes(found)


def _message(body: bytes | str) -> ScoreRequest:
    try:
        return ScoreRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ServiceError("bad_request", f"{place}: {first['msg']}"[:300]) from error


async def _multipart(request: Request, body: bytes) -> tuple[ScoreRequest, dict[str, bytes], str]:
    async def once() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    digest = hashlib.sha256()
    parts: dict[str, bytes] = {}
    text: str | None = None
    try:
        async with Request(request.scope, once).form(max_files=4096, max_fields=4, max_part_size=len(body)) as form:
            for name, value in form.multi_items():
                contents = await value.read() if isinstance(value, UploadFile) else value.encode()
                digest.update(json.dumps([name, len(contents)]).encode() + contents)
                if name == "request":
                    text = contents.decode("utf-8", errors="strict")
                else:
                    parts[name] = contents
    except (MultiPartException, UnicodeDecodeError) as error:
        raise ServiceError("bad_request", f"not a readable multipart body: {error}") from error
    if text is None:
        raise ServiceError("bad_request", "the multipart body has no part 'request'")
    return _message(text), parts, digest.hexdigest()


def failure(code: Code, message: str, retryable: bool = False) -> Response:
    """An answer that is not 200."""
    return answer(Problem(code=code, message=message, retryable=retryable))


def answer(problem: Problem) -> Response:
    """As `failure`, of a problem; a busy server says when to come again."""
    headers = {"Retry-After": "1"} if problem.code == "busy" else None
    content = ErrorBody(error=problem).model_dump(mode="json")
    return JSONResponse(content, status_code=STATUS.get(problem.code, 500), headers=headers)
