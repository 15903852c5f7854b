"""Asking a model behind an OpenAI-compatible endpoint, once per distinct question.

An answer is kept under a hash of everything that it depends on (model, revision, messages with the media's contents, decoding), in
memory and, where a folder is given, on disk; so a run that is resumed, or another that asks the same, does not pay again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator

from mmrl.errors import UserError
from mmrl.rewards.remote.client import RETRIED, _httpx, _is_here, _wait
from mmrl.rewards.remote.media import png


class Endpoint(BaseModel):
    """Where a judge is and how it is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = "http://127.0.0.1:8000/v1"
    """Base URL; `/chat/completions` is added."""
    model: str
    revision: str = ""
    """Which weights the server runs, where its name does not say; part of what answers are kept under."""
    token_env: str = "MMRL_JUDGE_TOKEN"
    """Environment variable that holds the bearer token, if the server wants one."""
    allow_remote: bool = False
    """Prompts, answers and pictures may be sent to another machine."""
    temperature: float = Field(default=0.0, ge=0)
    max_tokens: PositiveInt = 1024
    seed: int = 0
    concurrency: PositiveInt = 8
    timeout: PositiveFloat = 120.0
    tries: PositiveInt = 5
    backoff: PositiveFloat = 1.0
    max_pixels: PositiveInt = 1024 * 1024
    """Larger pictures and frames are made smaller, to this many pixels."""
    max_frames: PositiveInt = 8
    """Frames of a video that are shown, evenly from first to last."""
    cache: str | None = None
    """Folder in which answers are kept between runs."""

    @field_validator("url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"got {value!r}; expected http://HOST:PORT/v1 or https://HOST/v1")
        return value.rstrip("/")


class JudgeError(Exception):
    """A question without an answer."""


@dataclass(frozen=True)
class Reply:
    """What a judge said: its text, and the log-probs of the likeliest first tokens where they were asked for."""

    text: str
    first: Mapping[str, float] = field(default_factory=dict)


class Chat:
    """A client of one endpoint; may be used from several threads. Raises UserError for an endpoint that may not be asked."""

    def __init__(self, endpoint: Endpoint) -> None:
        if not endpoint.allow_remote and not _is_here(endpoint.url):
            raise UserError(
                f"judge url {endpoint.url} is not this machine, and prompts, answers and pictures would be sent there; set "
                "allow_remote: true to allow that"
            )
        httpx = _httpx()
        self.endpoint, self.errors = endpoint, httpx.TransportError
        token = os.environ.get(endpoint.token_env)
        self.client = httpx.Client(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(endpoint.timeout, connect=min(endpoint.timeout, 10.0)),
            trust_env=False,
        )
        self.pool = ThreadPoolExecutor(endpoint.concurrency, thread_name_prefix="judge")
        self.kept: dict[str, Reply] = {}
        self.guard = threading.Lock()
        self.asked = 0
        """Questions that went over the wire."""

    def ask_all(self, questions: Sequence[list[dict[str, Any]]], **options: Any) -> list[Reply | JudgeError]:
        """A reply, or what went wrong, for the messages of each question; see `ask`."""

        def one(messages: list[dict[str, Any]]) -> Reply | JudgeError:
            try:
                return self.ask(messages, **options)
            except JudgeError as error:
                return error

        return list(self.pool.map(one, questions))

    def ask(
        self, messages: list[dict[str, Any]], schema: Mapping[str, Any] | None = None, top_logprobs: int = 0
    ) -> Reply:
        """The reply to `messages` (their media as `picture` gives them), in the form of a JSON `schema`, or with the log-probs
        of the first token. Raises JudgeError when there is none."""
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": messages,
            "temperature": self.endpoint.temperature,
            "max_tokens": 1 if top_logprobs else self.endpoint.max_tokens,
            "seed": self.endpoint.seed,
        }
        if schema is not None:
            named = {"name": "verdict", "schema": schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        if top_logprobs:
            body |= {"logprobs": True, "top_logprobs": top_logprobs}
        key = hashlib.sha256(json.dumps([self.endpoint.revision, body], sort_keys=True).encode()).hexdigest()
        known = self._known(key)
        return known if known is not None else self._keep(key, self._post(body))

    def _known(self, key: str) -> Reply | None:
        with self.guard:
            if key in self.kept:
                return self.kept[key]
        file = self._file(key)
        if file is None or not file.is_file():
            return None
        reply = Reply(**json.loads(file.read_text(encoding="utf-8")))
        with self.guard:
            self.kept[key] = reply
        return reply

    def _keep(self, key: str, reply: Reply) -> Reply:
        with self.guard:
            self.kept[key] = reply
        file = self._file(key)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}.{threading.get_ident()}.part")
            part.write_text(json.dumps({"text": reply.text, "first": dict(reply.first)}), encoding="utf-8")
            os.replace(part, file)
        return reply

    def forget(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The same question, worded so that a kept answer does not serve: for the one re-ask after an unreadable answer."""
        return [*messages, {"role": "user", "content": "Your answer could not be read. Keep to the asked form."}]

    def _file(self, key: str) -> Path | None:
        return None if self.endpoint.cache is None else Path(self.endpoint.cache) / key[:2] / f"{key}.json"

    def _post(self, body: dict[str, Any]) -> Reply:
        problem, pause = "", 0.0
        for number in range(self.endpoint.tries):
            time.sleep(pause)
            pause = min(30.0, self.endpoint.backoff * 2**number) * random.uniform(0.5, 1.0)
            with self.guard:
                self.asked += 1
            try:
                reply = self.client.post(f"{self.endpoint.url}/chat/completions", json=body)
            except self.errors as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if reply.status_code in RETRIED:
                problem = f"{reply.status_code} {reply.reason_phrase}"
                asked_to_wait = _wait(reply.headers.get("retry-after"))
                pause = pause if asked_to_wait is None else asked_to_wait
                continue
            if reply.status_code != 200:
                raise JudgeError(f"{self.endpoint.url}: {reply.status_code}: {reply.text[:200]}")
            return _reply(reply)
        raise JudgeError(f"{self.endpoint.url}: {problem} (after {self.endpoint.tries} tries)")


def _reply(reply: Any) -> Reply:
    try:
        choice = reply.json()["choices"][0]
        first: dict[str, float] = {}
        tokens = (choice.get("logprobs") or {}).get("content") or []
        for one in tokens[0]["top_logprobs"] if tokens else ():
            first[one["token"]] = float(one["logprob"])
        return Reply(str(choice["message"]["content"] or ""), first)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise JudgeError(f"an answer that is no chat completion: {reply.text[:200]}") from error


def text(words: str) -> dict[str, Any]:
    """A text part of a message."""
    return {"type": "text", "text": words}


def picture(image: np.ndarray, max_pixels: int) -> dict[str, Any]:
    """A picture part of a message: PNG, made smaller to `max_pixels` where it is larger."""
    height, width = image.shape[:2]
    if height * width > max_pixels:
        scale = (max_pixels / (height * width)) ** 0.5
        size = (max(1, int(width * scale)), max(1, int(height * scale)))
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    data = base64.b64encode(png(image)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
