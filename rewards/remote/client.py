"""Rewards that are scored by a server: micro-batches or whole groups, bounded concurrency, and every answer checked.

Nothing that goes wrong becomes a number. What may pass (a lost connection, a timeout, 408, 429, 5xx, an answer that is cut off) is
tried again with the same request id, which the server answers once; what then is still wrong is a failure of its samples.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import uuid
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

import torch
from pydantic import Field, PositiveFloat, PositiveInt, PrivateAttr, ValidationError, field_validator

from mmrl.errors import UserError
from mmrl.reward import Failed, Graded, Need, Reward, Scope
from mmrl.rewards.remote.asking import Broken, Patience, ask, received, said, unlike
from mmrl.rewards.remote.connection import RETRIED, Connections, base_url, bearer, is_here
from mmrl.rewards.remote.contract import PROTOCOL, Info, Result, RewardInfo, ScoreRequest, ScoreResponse
from mmrl.rewards.remote.meter import Meter
from mmrl.rewards.remote.pack import HEADING, Packed, pack
from mmrl.rollout import Sample


class ServedReward(Reward):
    """Base of what `remote` and `remote_group` have in common."""

    takes = "as the server says"
    url: str = "http://127.0.0.1:8400"
    """Address of the server."""
    reward: str
    """Name of the reward on the server."""
    token_env: str = "MMRL_REWARD_TOKEN"
    """Environment variable that holds the bearer token, if the server wants one."""
    plain_token: bool = False
    """Send the token over http to another machine, where everybody on the way can read it."""
    concurrency: PositiveInt = 4
    """Requests at a time."""
    encoding: Literal["json", "multipart"] = "json"
    """Pictures as base64 inside the JSON, or as parts beside it (a quarter smaller)."""
    connect_timeout: PositiveFloat = 5.0
    """Seconds until a connection stands."""
    read_timeout: PositiveFloat = 120.0
    """Seconds between two pieces of an answer."""
    deadline: PositiveFloat = 600.0
    """Seconds after which a request is not tried again."""
    backoff: PositiveFloat = 0.5
    """Seconds before the second try, doubled for each further one (at most 30), drawn between half and whole."""
    patience: float = Field(default=60.0, ge=0)
    """Seconds that a server may take until it is ready when the run starts."""

    _info: RewardInfo | None = PrivateAttr(default=None)
    _most: int = PrivateAttr(default=1)
    _most_bytes: int = PrivateAttr(default=sys.maxsize)
    _connections: Any = PrivateAttr(default=None)
    _meter: Meter = PrivateAttr(default_factory=Meter)

    @field_validator("url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        return base_url(value, "http://HOST:PORT or https://HOST")

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        """As the server says."""
        return True if self._info is None else self._info.higher_is_better

    @property
    def licence(self) -> str:  # type: ignore[override]
        """As the server says."""
        return "as the server says" if self._info is None else self._info.licence

    @property
    def deterministic(self) -> bool:  # type: ignore[override]
        """As the server says."""
        return True if self._info is None else self._info.deterministic

    @property
    def retries(self) -> int:
        """Tries beyond the first, so far."""
        return self._meter.total["retries"]

    def stats(self) -> dict[str, float]:
        """`requests`, `retries`, and the seconds from the first try to the right answer as `latency_p50`, `latency_p95`."""
        return self._meter.take("requests", "retries")

    def elsewhere(self) -> str:
        return "" if self._info is None else self._info.model.sha256

    def inputs(self) -> tuple[Need, ...]:
        known: Any = () if self._info is None else self._info.needs
        return known

    def limits(self) -> tuple[float | None, float | None]:
        return (None, None) if self._info is None else self._info.range

    def setup(self, device: torch.device) -> None:
        """Ask the server what it has. Raises UserError when it does not answer, is not ready in time, lacks the reward, or has one
        of another scope."""
        token = bearer(self.token_env)
        if token and urlsplit(self.url).scheme == "http" and not self.plain_token and not is_here(self.url):
            raise UserError(
                f"the token would go to {self.url} unencrypted; use https, or set plain_token: true on a network that you trust"
            )
        self._connections = Connections(self.concurrency, "reward", token)
        info = self._ask_info()
        if self.reward not in info.rewards:
            raise UserError(f"{self.url} has no reward '{self.reward}'; it has: {', '.join(info.rewards)}")
        found = info.rewards[self.reward]
        fitting = "remote" if found.scope == "pointwise" else "remote_group"
        if (self.scope == "pointwise") != (found.scope == "pointwise"):
            raise UserError(f"reward '{self.reward}' of {self.url} is {found.scope}; ask for it by name: {fitting}")
        self._info, self._most, self._most_bytes = found, info.max_batch, info.max_bytes

    def score(self, samples: Sequence[Sample]) -> list[Any]:
        """One number, None or `Failed` per sample. May be called from several threads, and in a forked process."""
        connections: Connections = self._connections
        with connections.waiting.begin() as stop:
            jobs = [connections.pool.submit(partial(self._part, stop=stop), part) for part in self.parts(samples)]
            try:
                return [value for job in jobs for value in job.result()]
            except (KeyboardInterrupt, SystemExit):  # the threads must not go on asking until the deadline
                connections.give_up()
                raise
            finally:
                for job in jobs:
                    job.cancel()

    def stop(self) -> None:
        """The calls of `score` that wait now, and those that begin before the last of them has ended, get no more answers."""
        if self._connections is not None:
            self._connections.give_up()

    @abstractmethod
    def parts(self, samples: Sequence[Sample]) -> list[Sequence[Sample]]:
        """The samples of each request."""

    def _part(self, samples: Sequence[Sample], stop: threading.Event) -> list[Any]:
        """What the server says of the samples, in one request or, where they are too many bytes, in several. One that cannot be sent
        has failed; with it the group, which would not be whole."""
        groups = {prompt: number for number, prompt in enumerate(dict.fromkeys(one.prompt.id for one in samples))}
        packed: list[Packed] = []
        values: dict[str, Any] = {}
        for row, sample in enumerate(samples):
            group = 0 if self.scope != "pointwise" else groups[sample.prompt.id]
            try:
                packed.append(pack(sample, str(row), group, self.encoding == "multipart"))
            except (UserError, ValueError) as error:
                values[str(row)] = Failed(f"cannot be sent: {error}")
            except Exception as error:
                values[str(row)] = Failed(f"cannot be sent: {type(error).__name__}: {error}")
        if values and self.scope != "pointwise":
            first = next(iter(values.values()))
            return [Failed(f"a sample of its group {first.reason}")] * len(samples)
        for some in self._fitting(packed):
            values |= self._asked(some, samples, stop)
        return [values[str(row)] for row in range(len(samples))]

    def _fitting(self, packed: Sequence[Packed]) -> Iterator[Sequence[Packed]]:
        """Runs of samples that are no more bytes together than the server takes; a group stays whole, and so does a sample."""
        room = self._most_bytes - self._envelope()
        some: list[Packed] = []
        for one in packed:
            if some and self.scope == "pointwise" and sum(other.size for other in some) + one.size > room:
                yield some
                some = []
            some.append(one)
        if some:
            yield some

    def _envelope(self) -> int:
        """Bytes, at most, of a request without its samples."""
        empty = {"protocol": PROTOCOL, "request_id": uuid.uuid4().hex, "reward": self.reward, "samples": []}
        return len(json.dumps(empty)) + (2 * HEADING if self.encoding == "multipart" else 0)

    def _too_large(self, packed: Sequence[Packed]) -> str | None:
        """What to do about a request of more bytes than the server takes; None where it is not."""
        size = self._envelope() + sum(one.size for one in packed)
        if size <= self._most_bytes:
            return None
        whole = "" if len(packed) == 1 else "; a group is not cut"
        base64 = self.encoding == "json" and any(one.sample.media for one in packed)
        smaller = " or use encoding: multipart (a quarter smaller)" if base64 else ""
        what = f"{len(packed)} sample{'s' if len(packed) > 1 else ''}"
        return (
            f"a request of {what} is up to {size} bytes, and {self.url} takes {self._most_bytes}{whole}; "
            f"raise serve.max_bytes there to {size}{smaller}"
        )

    def _asked(self, packed: Sequence[Packed], samples: Sequence[Sample], stop: threading.Event) -> dict[str, Any]:
        """What one request says of its samples; whatever goes wrong is a failure of them all."""
        too_large = self._too_large(packed)
        if too_large is not None:
            return {one.sample.id: Failed(too_large) for one in packed}
        try:
            answer = self._answer(packed, stop)
            return {result.id: self._value(result, samples[int(result.id)]) for result in answer.results}
        except Broken as error:
            return {one.sample.id: Failed(f"{self.url}: {error}") for one in packed}
        except Exception as error:
            return {one.sample.id: Failed(f"{self.url}: {type(error).__name__}: {error}") for one in packed}

    def _answer(self, packed: Sequence[Packed], stop: threading.Event) -> ScoreResponse:
        self._meter.add("requests")
        request = ScoreRequest(
            protocol=PROTOCOL,
            request_id=uuid.uuid4().hex,
            reward=self.reward,
            samples=tuple(one.sample for one in packed),
        )
        patience = Patience(self.connect_timeout, self.read_timeout, self.deadline, self.backoff)
        multipart = self.encoding == "multipart"
        return ask(self._connections, self.url, request, packed, multipart, patience, self._check, self._meter, stop)

    def _value(self, result: Result, sample: Sample) -> Any:
        if result.detail is not None and (result.detail.answered or result.detail.answer is not None):
            sample.meta["answer"] = result.detail.answer  # None: looked for, not found
        if result.error is not None:
            return Failed(f"the server says: {result.error.message[:500]}")
        if result.score is None:
            return None
        low, high = self.limits()
        if (low is not None and result.score < low - 1e-6) or (high is not None and result.score > high + 1e-6):
            return Failed(f"{self.url}: score {result.score:g} is outside {low} to {high}, the range that it declares")
        if result.components:
            sample.meta["components"] = dict(result.components)
        how = None if result.detail is None else result.detail.how
        return result.score if how is None else Graded(result.score, how)

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
                f"scores of another model: {answer.model.name[:60]} {answer.model.revision[:60]} {answer.model.sha256[:12]} instead of "
                f"{self._info.model.revision} {self._info.model.sha256[:12]}; a run keeps to one",
                passing=False,
            )

    def _ask_info(self) -> Info:
        httpx = self._connections.httpx
        timeout = httpx.Timeout(self.read_timeout, connect=self.connect_timeout)
        end = time.monotonic() + self.patience
        server, outage = f"reward server {self.url}", self._connections.outage
        while True:
            started = time.monotonic()
            try:
                with self._connections.client.stream("GET", f"{self.url}/v1/info", timeout=timeout) as reply:
                    body = received(reply, time.monotonic() + self.read_timeout)
                if reply.status_code == 200:
                    info = Info.model_validate_json(body)
                    outage.answered(server)
                    return info
                problem, passing = said(reply, body), reply.status_code in RETRIED
            except httpx.RequestError as error:
                problem, passing = f"{type(error).__name__}: {error}", True
            except Broken as error:
                problem, passing = str(error), error.passing
            except ValidationError as error:
                problem, passing = f"it does not speak {PROTOCOL}: {unlike(error, body)}", False
            left = end - time.monotonic()
            if not passing or left < 0:
                raise UserError(f"{server}: {problem}; start it with: mmrl serve-rewards CONFIG")
            outage.failed(server, problem, started, 0.5, f"waiting for up to {left:.0f} s more")
            time.sleep(0.5)


class RemoteReward(ServedReward):
    """A reward on an `mmrl serve-rewards` server (or any that speaks `mmrl-reward/1`).

    Its facts (range, needs, direction) are read from the server when the run starts.
    """

    batch_size: PositiveInt = 32
    """Samples of one request; no more than the server takes."""

    def parts(self, samples: Sequence[Sample]) -> list[Sequence[Sample]]:
        size = min(self.batch_size, self._most)
        return [samples[at : at + size] for at in range(0, len(samples), size)]


class RemoteGroupReward(ServedReward):
    """As `remote`, for a reward that compares the samples of a group: groupwise or pairwise on the server, whose win rates are
    numbers like others. A request holds one whole group.
    """

    scope: ClassVar[Scope] = "groupwise"

    def at_once(self) -> int:
        return self.concurrency

    def parts(self, samples: Sequence[Sample]) -> list[Sequence[Sample]]:
        """The group. Raises UserError for one that is larger than what the server takes."""
        if len(samples) > self._most:
            raise UserError(
                f"a group of {len(samples)} samples, and {self.url} takes {self._most} per request; a group is not cut, so raise "
                f"serve.max_batch there to {len(samples)} or make groups smaller"
            )
        return [samples]
