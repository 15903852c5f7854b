"""Where a judge is, how it is asked, and whether it may be."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator

from mmrl.errors import UserError
from mmrl.rewards.remote.connection import base_url, bearer, is_here


class Endpoint(BaseModel):
    """Where a judge is and how it is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    url: str = "http://127.0.0.1:8000/v1"
    """Base URL; `/chat/completions` is added."""
    model: str
    """Name of the model, as the server knows it."""
    revision: str = ""
    """Which weights the server runs, where its name does not say; part of what answers are kept under."""
    fingerprint: bool = False
    """Replies of one run must have one `system_fingerprint` too; not where replicas of one model answer, each with its own."""
    token_env: str = "MMRL_JUDGE_TOKEN"
    """Environment variable that holds the bearer token, if the server wants one."""
    plain_token: bool = False
    """Send the token over http to another machine, where everybody on the way can read it."""
    allow_remote: bool = False
    """Prompts, answers and pictures may be sent to another machine."""
    temperature: float = Field(default=0.0, ge=0)
    """Of the judge's sampling; 0 takes the likeliest token."""
    max_tokens: PositiveInt = 1024
    """Longest answer; one that is cut off there is a failure."""
    seed: int = 0
    """Of the judge's sampling, where the server takes one."""
    concurrency: PositiveInt = 8
    """Requests at a time."""
    timeout: PositiveFloat = 120.0
    """Seconds until a whole answer is there."""
    tries: PositiveInt = 5
    """How often a question is sent that is not answered, or answered by 408, 425, 429 or 5xx."""
    backoff: PositiveFloat = 1.0
    """Most seconds before the second try; doubled with each further one, up to 30."""
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

    def token(self) -> str | None:
        """The bearer token, if there is one. Raises UserError where the host may not be asked, or the token not be sent to it."""
        if is_here(self.url):
            return bearer(self.token_env)
        if not self.allow_remote:
            raise UserError(
                f"judge url {self.url} is not this machine, and prompts, answers and pictures would be sent there; set "
                "allow_remote: true to allow that"
            )
        token = bearer(self.token_env)
        if token and urlsplit(self.url).scheme == "http" and not self.plain_token:
            raise UserError(
                f"the token would go to {self.url} unencrypted; use https, or set plain_token: true on a network that you trust"
            )
        return token
