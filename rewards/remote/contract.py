"""The messages of `mmrl-reward/1`.

A request with unknown fields is refused, so that a misspelt one is never a default; of an answer they are ignored, so that a server may
say more. Fields that have their default value are not sent, so that those which were added later do no harm.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from mmrl.reward import Need, Scope

Protocol = Literal["mmrl-reward/1"]
PROTOCOL: Protocol = "mmrl-reward/1"
Id = Annotated[str, Field(min_length=1, max_length=200)]
Number = Annotated[float, Field(strict=True)]
"""A number as JSON has it: neither `true` nor "0.5" is one."""
Most = Annotated[int, Field(strict=True, gt=0)]
Code = Literal[
    "bad_request", "unauthorised", "timeout", "too_large", "unknown_reward", "conflict", "busy", "failed", "internal"
]


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Media(Message):
    """A picture, a video or latents, in one of three ways: `data` (base64), `part` (a part of the multipart body) or `uri` (a file
    below the server's allowed folder).

    `mime`: image/png, image/jpeg, image/webp; video/mp4; application/vnd.safetensors (a video as uint8 "video" (T, H, W, 3),
    latents as any tensors).
    """

    role: Literal["output", "source", "reference"] = "output"
    """`source`: what stood beside the prompt; `reference`: what the output is compared with, `Prompt.meta["reference_media"]`."""
    kind: Literal["image", "video", "latent"]
    mime: str
    data: str | None = None
    part: str | None = None
    uri: str | None = None
    fps: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_way(self) -> Media:
        ways = [name for name in ("data", "part", "uri") if getattr(self, name) is not None]
        if len(ways) != 1:
            raise ValueError(f"a medium comes as one of data, part, uri; got {' and '.join(ways) or 'none'}")
        return self


class RequestSample(Message):
    """`reference` is what a verifier compares with; `meta` belongs to the prompt, `output_meta` (tokens, finished ...) to the output."""

    id: Id
    group: str | int = 0
    """Tells samples of one prompt apart from others. Rewards that compare need whole groups in one request."""
    prompt: str
    prompt_id: str = ""
    response: str | None = None
    reference: Any = None
    meta: dict[str, Any] = Field(default_factory=dict)
    output_meta: dict[str, Any] = Field(default_factory=dict)
    media: tuple[Media, ...] = ()


class ScoreRequest(Message):
    """`options` must be empty: a reward's options stand in the server's config, and its `Model.sha256` covers them."""

    protocol: Protocol
    request_id: Id
    reward: str
    options: dict[str, Any] = Field(default_factory=dict, max_length=0)
    samples: tuple[RequestSample, ...] = Field(min_length=1)


class Problem(Answer):
    """`code`: of this server one of `Code`; others may have more."""

    code: str
    message: str
    retryable: bool = False


class Detail(Answer):
    """`how`: the word that says how a score came about (`mmrl.reward.Graded`); `answer`: what was read as the answer of the sample;
    `answered`: an answer was looked for, and where `answer` is None none was found."""

    how: str | None = None
    answer: str | int | float | bool | None = None
    answered: bool = False


class Result(Answer):
    """`ok` has a score, `skipped` (the reward does not apply) has none, `error` says why. `components`: named parts of the score."""

    id: Id
    status: Literal["ok", "skipped", "error"]
    score: Number | None = None
    components: dict[str, Number] = Field(default_factory=dict)
    detail: Detail | None = None
    error: Problem | None = None

    @model_validator(mode="after")
    def _whole(self) -> Result:
        if (self.score is not None) != (self.status == "ok") or (self.error is not None) != (self.status == "error"):
            raise ValueError(f"status {self.status} with score {self.score} and error {self.error}")
        return self


class Model(Answer):
    """What scored: `sha256` covers the reward's class, its code, options and weights."""

    name: str
    revision: str
    sha256: str


class ScoreResponse(Answer):
    protocol: Protocol
    request_id: Id
    model: Model
    results: tuple[Result, ...]
    timing_ms: float


class RewardInfo(Answer):
    """A reward of `/v1/info`: its facts, and what the server takes at once."""

    model: Model
    scope: Scope
    needs: tuple[Need, ...]
    range: tuple[Number | None, Number | None]
    higher_is_better: StrictBool
    deterministic: StrictBool
    licence: str
    preprocessing: str = ""
    """A hash of what prepares the inputs: processors, tokenizers, and the versions of the libraries that decode and resize."""


class Info(Answer):
    protocol: Protocol
    rewards: dict[str, RewardInfo]
    max_batch: Most
    max_bytes: Most


class ErrorBody(Answer):
    """The body of every answer that is not 200."""

    error: Problem
