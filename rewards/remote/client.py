"""A reward that is scored by a server: micro-batches, bounded concurrency, retries with backoff, and every answer checked.

Nothing that goes wrong becomes a number. What may pass (a lost connection, a timeout, 408, 429, 5xx, an answer that is cut off) is
tried again with the same request id, which the server answers once; what then is still wrong is a failure of its samples.
"""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlsplit

import torch
from pydantic import Field, PositiveFloat, PositiveInt, PrivateAttr, ValidationError, field_validator

from mmrl.errors import UserError
from mmrl.reward import Failed, Need, Reward
from mmrl.rewards.remote.contract import PROTOCOL, ErrorBody, Info, Result, RewardInfo, ScoreRequest, ScoreResponse
from mmrl.rewards.remote.media import Packed, pack
from mmrl.rollout import Sample

RETRIED = (408, 425, 429, 500, 502, 503, 504)


class Broken(Exception):
    """An answer that is not what was asked for; `passing` says whether asking again may help."""

    def __init__(self, text: str, passing: bool = True, wait: float | None = None) -> None:
        super().__init__(text)
        self.passing, self.wait = passing, wait


class RemoteReward(Reward):
    """A reward on an `mmrl serve-rewards` server (or any that speaks `mmrl-reward/1`).

    Its facts (range, needs, direction) are read from the server when the run starts.
    """

    url: str = "http://127.0.0.1:8400"
    reward: str
    """Name of the reward on the server."""
    token_env: str = "MMRL_REWARD_TOKEN"
    """Environment variable that holds the bearer token, if the server wants one."""
    plain_token: bool = False
    """Send the token over http to another machine, where everybody on the way can read it."""
    batch_size: PositiveInt = 32
    """Samples of one request; no more than the server takes."""
    concurrency: PositiveInt = 4
    """Requests at a time."""
    encoding: Literal["json", "multipart"] = "json"
    """Pictures as base64 inside the JSON, or as parts beside it (a third smaller)."""
    connect_timeout: PositiveFloat = 5.0
    read_timeout: PositiveFloat = 120.0
    deadline: PositiveFloat = 600.0
    """Seconds after which a request is not tried again."""
    backoff: PositiveFloat = 0.5
    """Seconds before the second try, doubled for each further one (at most 30), drawn between half and whole."""
    patience: float = Field(default=60.0, ge=0)
    """Seconds that a server may take until it is ready when the run starts."""

    _info: RewardInfo | None = PrivateAttr(default=None)
    _most: int = PrivateAttr(default=1)
    _client: Any = PrivateAttr(default=None)
    _pool: Any = PrivateAttr(default=None)
    _retries: int = PrivateAttr(default=0)

    @field_validator("url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"got {value!r}; expected http://HOST:PORT or https://HOST")
        return value.rstrip("/")

    @property
    def retries(self) -> int:
        """Tries beyond the first, so far."""
        return self._retries

    def inputs(self) -> tuple[Need, ...]:
        known: Any = () if self._info is None else self._info.needs
        return known

    def limits(self) -> tuple[float | None, float | None]:
        return (None, None) if self._info is None else self._info.range

    def setup(self, device: torch.device) -> None:
        """Ask the server what it has. Raises UserError when it does not answer, is not ready in time, or lacks the reward."""
        httpx = _httpx()
        token = os.environ.get(self.token_env)
        if token and urlsplit(self.url).scheme == "http" and not self.plain_token and not _is_here(self.url):
            raise UserError(
                f"the token would go to {self.url} unencrypted; use https, or set plain_token: true on a network that you trust"
            )
        self._client = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(self.read_timeout, connect=self.connect_timeout),
            limits=httpx.Limits(max_connections=self.concurrency),
            trust_env=False,
        )
        self._pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="reward")
        info = self._ask_info()
        if self.reward not in info.rewards:
            raise UserError(f"{self.url} has no reward '{self.reward}'; it has: {', '.join(info.rewards)}")
        self._info = info.rewards[self.reward]
        if self._info.scope != "pointwise":
            raise UserError(
                f"reward '{self.reward}' of {self.url} is {self._info.scope}; only pointwise ones go over HTTP"
            )
        self._most = min(self.batch_size, info.max_batch)

    def score(self, samples: Sequence[Sample]) -> list[Any]:
        """One number, None or `Failed` per sample."""
        starts = range(0, len(samples), self._most)
        jobs = [self._pool.submit(self._part, samples[at : at + self._most]) for at in starts]
        return [value for job in jobs for value in job.result()]

    def _part(self, samples: Sequence[Sample]) -> list[Any]:
        groups = {prompt: number for number, prompt in enumerate(dict.fromkeys(one.prompt.id for one in samples))}
        packed = [
            pack(sample, str(row), groups[sample.prompt.id], self.encoding == "multipart")
            for row, sample in enumerate(samples)
        ]
        try:
            answer = self._exchange(packed)
        except Broken as error:
            return [Failed(f"{self.url}: {error}")] * len(samples)
        by_id = {result.id: result for result in answer.results}
        return [self._value(by_id[one.sample.id]) for one in packed]

    @staticmethod
    def _value(result: Result) -> Any:
        if result.status == "ok":
            return result.score
        return None if result.error is None else Failed(f"the server says: {result.error.message}")

    def _exchange(self, packed: Sequence[Packed]) -> ScoreResponse:
        """Ask until there is a right answer, the deadline is over or trying again makes no sense. Raises Broken."""
        request = ScoreRequest(
            protocol=PROTOCOL,
            request_id=uuid.uuid4().hex,
            reward=self.reward,
            samples=tuple(one.sample for one in packed),
        )
        content = self._content(request, packed)
        end = time.monotonic() + self.deadline
        tries = 0
        while True:
            tries += 1
            try:
                return self._once(request, content)
            except Broken as error:
                pause = error.wait if error.wait is not None else self._pause(tries)
                if not error.passing:
                    raise
                if time.monotonic() + pause > end:
                    raise Broken(f"{error} (after {tries} tries)") from error
                self._retries += 1
                time.sleep(pause)

    def _pause(self, tries: int) -> float:
        return min(30.0, self.backoff * 2 ** (tries - 1)) * random.uniform(0.5, 1.0)

    def _content(self, request: ScoreRequest, packed: Sequence[Packed]) -> dict[str, Any]:
        body = request.model_dump_json()
        if self.encoding == "json":
            return {"content": body.encode(), "headers": {"Content-Type": "application/json"}}
        parts = {name: part for one in packed for name, part in one.parts.items()}
        files = [(name, (name, contents, mime)) for name, (mime, contents) in parts.items()]
        return {"files": [("request", ("request", body.encode(), "application/json")), *files]}

    def _once(self, request: ScoreRequest, content: dict[str, Any]) -> ScoreResponse:
        import httpx

        try:
            reply = self._client.post("/v1/score", **content)
        except httpx.TransportError as error:
            raise Broken(f"{type(error).__name__}: {error}") from error
        if reply.status_code != 200:
            raise Broken(_said(reply), reply.status_code in RETRIED, _wait(reply.headers.get("retry-after")))
        try:
            answer = ScoreResponse.model_validate_json(reply.content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise Broken(f"an answer that is not {PROTOCOL}: {first['loc']}: {first['msg']}") from error
        self._check(request, answer)
        return answer

    def _check(self, request: ScoreRequest, answer: ScoreResponse) -> None:
        """Raises Broken for an answer to something else, or by something else."""
        assert self._info is not None
        if answer.request_id != request.request_id:
            raise Broken(f"an answer to request '{answer.request_id}' instead of '{request.request_id}'")
        wanted, got = sorted(one.id for one in request.samples), sorted(one.id for one in answer.results)
        if wanted != got:
            raise Broken(f"results for {len(got)} samples ({', '.join(got[:4])} ...) instead of {len(wanted)}")
        if answer.model != self._info.model:
            raise Broken(
                f"scores of another model: {answer.model.name} {answer.model.revision} {answer.model.sha256[:12]} instead of "
                f"{self._info.model.revision} {self._info.model.sha256[:12]}; a run keeps to one",
                passing=False,
            )
        low, high = self._info.range
        for result in answer.results:
            value = result.score
            if value is not None and (
                (low is not None and value < low - 1e-6) or (high is not None and value > high + 1e-6)
            ):
                raise Broken(f"score {value:g} of sample {result.id} is outside {low} to {high}", passing=False)

    def _ask_info(self) -> Info:
        import httpx

        end = time.monotonic() + self.patience
        while True:
            try:
                reply = self._client.get("/v1/info")
                if reply.status_code == 200:
                    return Info.model_validate_json(reply.content)
                problem, passing = _said(reply), reply.status_code in RETRIED
            except httpx.TransportError as error:
                problem, passing = f"{type(error).__name__}: {error}", True
            except ValidationError:
                problem, passing = f"it does not speak {PROTOCOL}", False
            if not passing or time.monotonic() > end:
                raise UserError(f"reward server {self.url}: {problem}; start it with: mmrl serve-rewards CONFIG")
            time.sleep(0.5)


def _httpx() -> Any:
    try:
        import httpx
    except ImportError as error:
        raise UserError("remote rewards need httpx: pip install 'mmrl[serve]'") from error
    return httpx


def _is_here(url: str) -> bool:
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


def _said(reply: Any) -> str:
    """What an answer that is not 200 says."""
    try:
        return f"{reply.status_code}: {ErrorBody.model_validate_json(reply.content).error.message}"
    except ValidationError:
        return f"{reply.status_code} {reply.reason_phrase}"


def _wait(header: str | None) -> float | None:
    """Seconds that `Retry-After` asks for, a number or a date; None without one."""
    if not header:
        return None
    if header.strip().isdigit():
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
