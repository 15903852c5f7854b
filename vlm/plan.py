"""The `rollout:` block of a stage and the `sampling:` block of the evaluation, for models that write tokens."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

BENT = (
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram_size",
)
"""Sampling options that bend the distribution which tokens are drawn from."""


class VlmPlan(BaseModel):
    """A rollout. Every answer token is one step of the policy; log-probs are those of `temperature`, in training too."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    max_new_tokens: PositiveInt = 512
    """S, the most tokens of an answer; one that reaches it has no end and is marked `finished: false`."""
    temperature: PositiveFloat = 1.0
    micro_batch: PositiveInt = 64
    """Samples that are written at once (whole groups, at least one)."""

    @model_validator(mode="before")
    @classmethod
    def _one_distribution(cls, value: Any) -> Any:
        for name in BENT if isinstance(value, dict) else ():
            if name in value:
                raise ValueError(
                    f"{name} cannot be used in a rollout that trains: tokens would be drawn from another distribution than "
                    "the one whose log-probs are trained, so every ratio would be wrong; change temperature instead"
                )
        return value


class VlmSampling(BaseModel):
    """How answers are written for evaluation and for users: drawn at `temperature`, or the likeliest token at 0."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    max_new_tokens: PositiveInt = 512
    temperature: float = Field(default=1.0, ge=0)
    micro_batch: PositiveInt = 64
    """Samples that are written at once (whole groups, at least one)."""
