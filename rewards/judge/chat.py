"""Asking a model behind an OpenAI-compatible endpoint, once per distinct question.

An answer is kept under a hash of everything that it depends on (model, revision, messages with the media's contents, decoding), in
memory and, where a folder is given, on disk; so a run that is resumed, or another that asks the same, does not pay again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator

from mmrl.errors import UserError
from mmrl.rewards.judge.identity import Identity, Who, who_of
from mmrl.rewards.remote.connection import RETRIED, Connections, asked_to_wait, base_url, bearer, is_here, pause
from mmrl.rewards.remote.media import png
from mmrl.rewards.remote.meter import Meter

LONGEST_WAIT = 600.0
"""Seconds: a judge that wants to be asked again later than that is not."""


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
        return base_url(value, "http://HOST:PORT/v1 or https://HOST/v1")


class JudgeError(Exception):
    """A question without an answer."""


@dataclass(frozen=True)
class Reply:
    """What a judge said: its text, the log-probs of the likeliest first tokens where they were asked for, and who it says it is."""

    text: str
    first: Mapping[str, float] = field(default_factory=dict)
    who: Who = (None, None)


class Chat:
    """A client of one endpoint; may be used from several threads. Raises UserError for an endpoint that may not be asked.

    All replies, kept ones too, must say that they come from the same judge.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        if not endpoint.allow_remote and not is_here(endpoint.url):
            raise UserError(
                f"judge url {endpoint.url} is not this machine, and prompts, answers and pictures would be sent there; set "
                "allow_remote: true to allow that"
            )
        self.endpoint = endpoint
        self.connections = Connections(endpoint.concurrency, "judge", bearer(endpoint.token_env))
        self.kept: dict[str, Reply] = {}
        self.identity = Identity()
        self.guard = threading.Lock()
        self.meter = Meter()

    @property
    def asked(self) -> int:
        """Questions that went over the wire, those asked again included."""
        return self.meter.total["asked"]

    def stats(self) -> dict[str, float]:
        """Since the last call: `asked` (over the wire, those asked again included), `retries` among them, `cached` (answered from
        what is kept), and the seconds from the first try to the answer as `latency_p50`, `latency_p95`."""
        return self.meter.take("asked", "retries", "cached")

    def ask_all(self, questions: Sequence[list[dict[str, Any]]], **options: Any) -> list[Reply | JudgeError]:
        """A reply, or what went wrong, for the messages of each question; see `ask`."""

        def one(messages: list[dict[str, Any]]) -> Reply | JudgeError:
            try:
                return self.ask(messages, **options)
            except JudgeError as error:
                return error

        return list(self.connections.pool.map(one, questions))

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
        if known is not None and self.identity.change(known.who) is None:
            self.meter.add("cached")
            return known
        reply = self._post(body)
        change = self.identity.change(reply.who)
        if change is not None:
            raise JudgeError(
                f"{self.endpoint.url}: {change}; let the server keep to one, or begin anew with another revision"
            )
        return self._keep(key, reply)

    def _known(self, key: str) -> Reply | None:
        with self.guard:
            if key in self.kept:
                return self.kept[key]
        file = self._file(key)
        if file is None or not file.is_file():
            return None
        try:
            said = json.loads(file.read_text(encoding="utf-8"))
            model, fingerprint = said.get("who", (None, None))
            reply = Reply(said["text"], said["first"], (model, fingerprint))
        except (ValueError, KeyError, TypeError, AttributeError):
            return None  # a file that broke off is written anew
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
            part.write_text(
                json.dumps({"text": reply.text, "first": dict(reply.first), "who": reply.who}), encoding="utf-8"
            )
            os.replace(part, file)
        return reply

    def forget(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The same question, worded so that a kept answer does not serve: for the one re-ask after an unreadable answer."""
        return [*messages, {"role": "user", "content": "Your answer could not be read. Keep to the asked form."}]

    def _file(self, key: str) -> Path | None:
        return None if self.endpoint.cache is None else Path(self.endpoint.cache) / key[:2] / f"{key}.json"

    def _post(self, body: dict[str, Any]) -> Reply:
        httpx = self.connections.httpx
        timeout = httpx.Timeout(self.endpoint.timeout, connect=min(self.endpoint.timeout, 10.0))
        problem, wait, began = "", 0.0, time.monotonic()
        for number in range(1, self.endpoint.tries + 1):
            if wait > LONGEST_WAIT:
                raise JudgeError(f"{self.endpoint.url}: {problem}, and it asks to come again in {wait:.0f} seconds")
            if wait:
                self.meter.add("retries")
                time.sleep(wait)
            self.meter.add("asked")
            try:
                url = f"{self.endpoint.url}/chat/completions"
                reply = self.connections.client.post(url, json=body, timeout=timeout)
            except httpx.RequestError as error:
                problem, wait = f"{type(error).__name__}: {error}", pause(number, self.endpoint.backoff)
                continue
            if reply.status_code in RETRIED:
                problem = f"{reply.status_code} {reply.reason_phrase}"
                wait = pause(number, self.endpoint.backoff, asked_to_wait(reply.headers.get("retry-after")))
                continue
            if reply.status_code != 200:
                raise JudgeError(f"{self.endpoint.url}: {reply.status_code}: {reply.text[:200]}")
            self.meter.took(time.monotonic() - began)
            return _reply(reply)
        raise JudgeError(f"{self.endpoint.url}: {problem} (after {self.endpoint.tries} tries)")


def _reply(reply: Any) -> Reply:
    try:
        completion = reply.json()
        choice = completion["choices"][0]
        first: dict[str, float] = {}
        tokens = (choice.get("logprobs") or {}).get("content") or []
        for one in tokens[0]["top_logprobs"] if tokens else ():
            first[one["token"]] = float(one["logprob"])
        return Reply(str(choice["message"]["content"] or ""), first, who_of(completion))
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
