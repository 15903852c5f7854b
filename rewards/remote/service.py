"""What a reward server does with a request, without HTTP: scores it once, however often it is asked."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from mmrl.reward import Reward, RewardSet
from mmrl.rewards.remote.contract import (
    PROTOCOL,
    Code,
    Info,
    Model,
    Problem,
    Result,
    RewardInfo,
    ScoreRequest,
    ScoreResponse,
)
from mmrl.rewards.remote.media import Limits, Refused, unpack
from mmrl.rollout import FAILED, OK

KEPT = 4096
"""Answers that are kept for requests that come again."""

STATUS: dict[Code, int] = {
    "bad_request": 400,
    "unauthorised": 401,
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


class Service:
    """The loaded rewards of a server. `score` may be called from several threads; a reward runs in one at a time."""

    def __init__(self, rewards: Mapping[str, Reward], limits: Limits, device: torch.device) -> None:
        self.rewards, self.limits, self.device = dict(rewards), limits, device
        self.ready = False
        self.models: dict[str, Model] = {}
        self.locks = {name: threading.Lock() for name in rewards}
        self.answers: OrderedDict[str, tuple[str, ScoreResponse]] = OrderedDict()
        self.turns = [threading.Lock() for _ in range(256)]
        self.guard = threading.Lock()
        self.failure: str | None = None

    def load(self) -> None:
        """Load every reward and fingerprint it; what goes wrong is kept in `failure`, and nothing is served."""
        for name, reward in self.rewards.items():
            try:
                reward.setup(self.device)
                self.models[name] = Model(name=name, revision=reward.revision, sha256=fingerprint(reward))
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
            )
            for name, reward in self.rewards.items()
        }
        return Info(
            protocol=PROTOCOL, rewards=rewards, max_batch=self.limits.max_batch, max_bytes=self.limits.max_bytes
        )

    def score(self, request: ScoreRequest, parts: Mapping[str, bytes], digest: str) -> ScoreResponse:
        """Scores of a request; of one that was answered before, the same answer. `digest` tells bodies apart.

        Raises ServiceError for what is not taken.
        """
        self._check(request)
        with self.turns[
            zlib.crc32(request.request_id.encode()) % len(self.turns)
        ]:  # a repeated request waits for the first
            known = self.answers.get(request.request_id)
            if known is not None:
                if known[0] != digest:
                    raise ServiceError("conflict", f"request_id '{request.request_id}' was used for another request")
                return known[1]
            answer = self._scored(request, parts)
            with self.guard:
                self.answers[request.request_id] = (digest, answer)
                while len(self.answers) > KEPT:
                    self.answers.popitem(last=False)
            return answer

    def _check(self, request: ScoreRequest) -> None:
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

    def _scored(self, request: ScoreRequest, parts: Mapping[str, bytes]) -> ScoreResponse:
        began = time.perf_counter()
        try:
            samples = [unpack(sample, parts, self.limits) for sample in request.samples]
        except Refused as error:
            raise ServiceError("bad_request", str(error)) from error
        name = request.reward
        with self.locks[name]:
            scores = RewardSet({name: (self.rewards[name], 1.0)}).score(samples)
        messages = iter(scores.messages)
        results = []
        for row, sample in enumerate(request.samples):
            status = scores.status[row, 0]
            if status == OK:
                results.append(Result(id=sample.id, status="ok", score=float(scores.values[row, 0])))
            elif status == FAILED:
                problem = Problem(code="failed", message=next(messages, "no reason given"))
                results.append(Result(id=sample.id, status="error", error=problem))
            else:
                results.append(Result(id=sample.id, status="skipped"))
        return ScoreResponse(
            protocol=PROTOCOL,
            request_id=request.request_id,
            model=self.models[name],
            results=tuple(results),
            timing_ms=round(1000 * (time.perf_counter() - began), 3),
        )


def fingerprint(reward: Reward) -> str:
    """SHA-256 over a reward's class, options and the weights that `setup` loaded."""
    kind = type(reward)
    options = reward.model_dump(mode="json", fallback=lambda value: f"{value.__module__}.{value.__qualname__}")
    facts = [f"{kind.__module__}.{kind.__qualname__}", reward.revision, json.dumps(options, sort_keys=True)]
    digest = hashlib.sha256("\n".join(facts).encode())
    for name, value in sorted((reward.__pydantic_private__ or {}).items()):
        if isinstance(value, nn.Module):
            digest.update(name.encode())
            for key, tensor in sorted(value.state_dict().items()):
                digest.update(key.encode())
                digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Any) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return np.asarray(flat).tobytes()
