"""A request as it comes over HTTP -> a message and its parts. Hostile input is refused before it is read or decoded: bytes are
counted while they arrive, and must arrive in time; only JSON and multipart bodies are taken, and not too many of anything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import anyio
from fastapi import Request
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect

from mmrl.rewards.remote.contract import RequestSample, ScoreRequest
from mmrl.rewards.remote.media import Limits
from mmrl.rewards.remote.service import ServiceError

PARTS = 4096
"""Parts of a multipart body."""
VALUES = 1 << 20
"""Commas and brackets of a JSON: as many values may be in it, and each takes up to a hundred times its bytes."""


async def read(
    request: Request, limits: Limits, seconds: float
) -> Callable[[], tuple[ScoreRequest, dict[str, bytes], str]]:
    """What makes, in a thread, the message of a request, its binary parts, and a digest of both. Raises ServiceError for what is not
    taken, here and there."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "multipart/form-data"):
        raise ServiceError(
            "bad_request", f"content-type '{kind[:60]}'; expected application/json or multipart/form-data"
        )
    body = await _body(request, limits.max_bytes, seconds)
    if kind == "application/json":
        return lambda: (message(body, limits), {}, hashlib.sha256(body).hexdigest())
    text, parts = await _multipart(request, body)
    return lambda: (message(text, limits), parts, _digest(text, parts))


async def _body(request: Request, most: int, seconds: float) -> bytes:
    """The body, refused as soon as it is known to be larger than `most` bytes, or not there after `seconds`."""
    too_large = ServiceError("too_large", f"the body is larger than {most} bytes")
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > most:
        raise too_large
    found = bytearray()
    try:
        with anyio.fail_after(seconds):
            async for piece in request.stream():
                found += piece
                if len(found) > most:
                    raise too_large
    except TimeoutError:
        raise ServiceError("timeout", f"the body took longer than {seconds:g} seconds") from None
    except ClientDisconnect:
        raise ServiceError("bad_request", "the client went away before its body was there") from None
    return bytes(found)


def message(body: bytes, limits: Limits) -> ScoreRequest:
    """A request from its JSON. Raises ServiceError for NaN and infinity, and for too many of anything, before the fields are looked at:
    every wrong one would cost memory for its own line."""
    if sum(body.count(sign) for sign in b",[{") > VALUES:
        raise ServiceError("too_large", f"the JSON holds more than {VALUES} values; send fewer samples or shorter meta")
    try:
        tree = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ServiceError("bad_request", f"not JSON: {error}"[:300]) from error
    _check_size(tree, limits)
    try:
        return ScoreRequest.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part)[:60] for part in first["loc"])
        raise ServiceError("bad_request", f"{place}: {first['msg']}"[:300]) from error


def _check_size(tree: Any, limits: Limits) -> None:
    if not isinstance(tree, dict):
        raise ServiceError("bad_request", "a request is a JSON object")
    _check_keys(tree, ScoreRequest)
    samples = tree.get("samples")
    if not isinstance(samples, list):
        return
    if len(samples) > limits.max_batch:
        raise ServiceError("too_large", f"{len(samples)} samples; at most {limits.max_batch} are taken")
    media = 0
    for sample in samples:
        if isinstance(sample, dict):
            _check_keys(sample, RequestSample)
            media += len(sample["media"]) if isinstance(sample.get("media"), list) else 0
    if media > limits.max_media:
        raise ServiceError("too_large", f"{media} media; at most {limits.max_media} are taken")


def _check_keys(given: dict[str, Any], kind: Any) -> None:
    unknown = next((name for name in given if name not in kind.model_fields), None)
    if unknown is not None:
        raise ServiceError(
            "bad_request", f"unknown field {unknown[:60]!r}; a {kind.__name__} has {', '.join(kind.model_fields)}"
        )


async def _multipart(request: Request, body: bytes) -> tuple[bytes, dict[str, bytes]]:
    async def once() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    parts: dict[str, bytes] = {}
    try:
        async with Request(request.scope, once).form(max_files=PARTS, max_fields=4, max_part_size=len(body)) as form:
            for name, value in form.multi_items():
                if name in parts:
                    raise ServiceError("bad_request", f"the multipart body has two parts '{name[:60]}'")
                parts[name] = await value.read() if isinstance(value, UploadFile) else value.encode()
    except MultiPartException as error:
        raise ServiceError("bad_request", f"not a readable multipart body: {error.message[:200]}") from error
    except UnicodeError as error:
        raise ServiceError("bad_request", "not a readable multipart body: text that is not of its charset") from error
    if "request" not in parts:
        raise ServiceError("bad_request", "the multipart body has no part 'request'")
    return parts.pop("request"), parts


def _digest(text: bytes, parts: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, contents in (("request", text), *parts.items()):
        digest.update(json.dumps([name, len(contents)]).encode() + contents)
    return digest.hexdigest()
