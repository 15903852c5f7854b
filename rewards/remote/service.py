"""What a reward server does with a request, without HTTP: scores it once, however often it is asked."""

from __future__ import annotations

import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch

from mmrl.reward import Reward, RewardSet
from mmrl.reward.fingerprint import fingerprint, preprocessing
from mmrl.rewards.remote.contract import (
    PROTOCOL,
    Code,
    Detail,
    Info,
    Model,
    Problem,
    RequestSample,
    Result,
    RewardInfo,
    ScoreRequest,
    ScoreResponse,
)
from mmrl.rewards.remote.media import Limits, Refused, Room, unpack
from mmrl.rollout import FAILED, OK, Sample

KEPT, KEPT_BYTES = 4096, 64 << 20
"""Answers that are kept for requests that come again: at most so many, and so many bytes."""
DECODED = 2
"""Requests of a reward whose media are decoded at a time: one that is scored, one that is next."""

STATUS: dict[str, int] = {
    "bad_request": 400,
    "unauthorised": 401,
    "timeout": 408,
    "too_large": 413,
    "unknown_reward": 422,
    "conflict": 409,
    "busy": 503,
    "internal": 500,
}


class ServiceError(Exception):
    """A request that is not answered with scores."""

    def __init__(self, code: Code, message: str, retryable: bool = False) -> None:
        super().__init__(message)
        self.problem = Problem(code=code, message=message, retryable=retryable)


class Answers:
    """The last answers by request id, each with a digest of its request: at most `most`, of `size` bytes together."""

    def __init__(self, most: int = KEPT, size: int = KEPT_BYTES) -> None:
        self.most, self.size, self.held = most, size, 0
        self.known: OrderedDict[str, tuple[str, bytes]] = OrderedDict()
        self.guard = threading.Lock()

    def get(self, id: str) -> tuple[str, bytes] | None:
        with self.guard:
            return self.known.get(id)

    def put(self, id: str, digest: str, answer: bytes) -> None:
        with self.guard:
            self.known[id] = (digest, answer)
            self.held += len(answer)
            while len(self.known) > self.most or (self.held > self.size and len(self.known) > 1):
                self.held -= len(self.known.popitem(last=False)[1][1])


class Service:
    """The loaded rewards of a server. `score` may be called from several threads; a reward runs in one at a time."""

    def __init__(self, rewards: Mapping[str, Reward], limits: Limits, device: torch.device) -> None:
        self.rewards, self.limits, self.device = dict(rewards), limits, device
        self.ready = False
        self.models: dict[str, Model] = {}
        self.preprocessing: dict[str, str] = {}
        self.locks = {name: threading.Lock() for name in rewards}
        self.decoded = {name: threading.BoundedSemaphore(DECODED) for name in rewards}
        self.answers = Answers()
        self.turns = [threading.Lock() for _ in range(256)]
        self.failure: str | None = None

    def load(self) -> None:
        """Load every reward and fingerprint it; what goes wrong is kept in `failure`, and nothing is served."""
        for name, reward in self.rewards.items():
            try:
                reward.setup(self.device)
                self.models[name] = Model(name=name, revision=reward.revision, sha256=fingerprint(reward))
                self.preprocessing[name] = preprocessing(reward)
            except Exception as error:
                self.failure = f"reward '{name}' cannot be loaded: {error}"
                return
        self.ready = True

    def check_ready(self) -> None:
        """Raises ServiceError while the rewards are being loaded, and where one could not be."""
        if self.failure is not None:
            raise ServiceError("internal", self.failure)
        if not self.ready:
            raise ServiceError("busy", "the rewards are still loading", retryable=True)

    def info(self) -> Info:
        """Facts about the rewards and the limits."""
        rewards = {
            name: RewardInfo(
                model=self.models[name],
                scope=reward.scope,
                needs=reward.inputs(),
                range=reward.limits(),
                higher_is_better=reward.higher_is_better,
                deterministic=reward.deterministic,
                licence=reward.licence,
                preprocessing=self.preprocessing[name],
            )
            for name, reward in self.rewards.items()
        }
        return Info(
            protocol=PROTOCOL, rewards=rewards, max_batch=self.limits.max_batch, max_bytes=self.limits.max_bytes
        )

    def score(self, request: ScoreRequest, parts: Mapping[str, bytes], digest: str) -> bytes:
        """The answer to a request as JSON; to one that was answered before, the same answer. `digest` tells bodies apart.

        Raises ServiceError for what is not taken.
        """
        groups = self._check(request)
        id = request.request_id
        with self.turns[zlib.crc32(id.encode()) % len(self.turns)]:  # a repeated request waits for the first
            known = self.answers.get(id)
            if known is None:
                answer = self._scored(request, parts, groups).model_dump_json(exclude_defaults=True).encode()
                self.answers.put(id, digest, answer)
                return answer
            if known[0] != digest:
                raise ServiceError("conflict", f"request_id '{id}' was used for another request")
            return known[1]

    def _check(self, request: ScoreRequest) -> list[int]:
        """The group of each sample as a number."""
        self.check_ready()
        if request.reward not in self.rewards:
            raise ServiceError(
                "unknown_reward", f"no reward '{request.reward[:60]}' here; there is: {', '.join(self.rewards)}"
            )
        if len(request.samples) > self.limits.max_batch:
            raise ServiceError(
                "too_large", f"{len(request.samples)} samples; at most {self.limits.max_batch} are taken"
            )
        if len({sample.id for sample in request.samples}) < len(request.samples):
            raise ServiceError("bad_request", "two samples have one id")
        if self.rewards[request.reward].scope != "pointwise":
            _check_groups(request.samples)
        numbers: dict[str | int, int] = {}
        return [numbers.setdefault(sample.group, len(numbers)) for sample in request.samples]

    def _scored(self, request: ScoreRequest, parts: Mapping[str, bytes], groups: list[int]) -> ScoreResponse:
        began = time.perf_counter()
        name = request.reward
        with self.decoded[name]:
            room = Room(self.limits.max_decoded)
            try:
                samples = [unpack(sample, parts, self.limits, room) for sample in request.samples]
            except Refused as error:
                raise ServiceError("bad_request", str(error)) from error
            with self.locks[name]:
                scores = RewardSet({name: (self.rewards[name], 1.0)}).score(samples, groups)
        messages = iter(scores.messages)
        results = []
        for row, sample in enumerate(samples):
            id, status = request.samples[row].id, scores.status[row, 0]
            if status == OK:
                score = float(scores.values[row, 0])
                own = sample.meta.get("components", {}).get(name, {})
                results.append(Result(id=id, status="ok", score=score, components=own, detail=_detail(name, sample)))
            elif status == FAILED:
                problem = Problem(code="failed", message=next(messages, "no reason given"))
                results.append(Result(id=id, status="error", error=problem, detail=_detail(name, sample)))
            else:
                results.append(Result(id=id, status="skipped", detail=_detail(name, sample)))
        return ScoreResponse(
            protocol=PROTOCOL,
            request_id=request.request_id,
            model=self.models[name],
            results=tuple(results),
            timing_ms=round(1000 * (time.perf_counter() - began), 3),
        )


def _check_groups(samples: Sequence[RequestSample]) -> None:
    """Raises ServiceError for a group of several prompts: a client that names no groups would have everything compared."""
    prompts: dict[str | int, tuple[str, str]] = {}
    for sample in samples:
        own = (sample.prompt_id, sample.prompt)
        if prompts.setdefault(sample.group, own) != own:
            raise ServiceError("bad_request", f"group '{str(sample.group)[:60]}' holds samples of different prompts")


def _detail(name: str, sample: Sample) -> Detail | None:
    """How the score came about and what was read as the answer (None: none was found), where the reward says so."""
    how, answer = sample.meta.get("graded", {}).get(name), sample.meta.get("answer")
    answered = "answer" in sample.meta and (answer is None or isinstance(answer, str | int | float | bool))
    if how is None and not answered:
        return None
    return Detail(how=how, answer=answer if answered else None, answered=answered)
