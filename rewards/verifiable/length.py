"""Rewards that look at the length of an answer, in tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field, PrivateAttr, ValidationInfo, model_validator

from mmrl.components import build
from mmrl.reward import Need, Reward, lacking
from mmrl.rollout import Sample


def overlong_penalty(length: float, limit: float, buffer: float) -> float:
    """0 up to `limit` - `buffer` tokens, then linear to -1 at `limit`, and -1 beyond (DAPO); without buffer a step.

    The limit itself is still allowed when there is no buffer.
    """
    if length <= limit - buffer:
        return 0.0
    return -1.0 if length > limit else (limit - buffer - length) / buffer


def cosine_value(length: float, longest: float, start: float, end: float) -> float:
    """Half a cosine from `start` at length 0 to `end` at `longest`, and `end` beyond it."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(length, longest) / longest))


def num_tokens(sample: Sample) -> int:
    """`meta["tokens"]`, the length of the generated text in tokens. Raises ValueError where the policy does not say it."""
    tokens = sample.meta.get("tokens")
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
        raise ValueError(f"length in tokens is unknown: expected meta['tokens'], a whole number, got {tokens!r}")
    return tokens


class Overlong(Reward):
    """0 for a text of at most `limit` - `buffer` tokens, falling to -1 at `limit` and staying there (DAPO)."""

    range = (-1.0, 0.0)
    needs = ("text",)
    licence = "Apache-2.0"
    limit: int = Field(ge=1)
    """Tokens from which on the penalty is full; usually the most that the policy may generate."""
    buffer: int = Field(default=0, ge=0)
    """Tokens below `limit` over which the penalty grows."""

    @model_validator(mode="after")
    def _buffer_fits(self) -> Overlong:
        if self.buffer > self.limit:
            raise ValueError(f"buffer is {self.buffer} tokens, more than the limit of {self.limit}")
        return self

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """One number per sample. Raises ValueError for a sample of unknown length."""
        return [overlong_penalty(num_tokens(sample), self.limit, self.buffer) for sample in samples]


class CosineLength(Reward):
    """What a right answer is worth shrinks with its length, what a wrong one costs shrinks too (Yeo et al. 2025).

    `of` judges the answer; one that it scores at least `right_from` is right.
    """

    range = (None, None)
    needs = ("text",)
    licence = "Apache-2.0"
    of: dict[str, Any]
    """The reward that judges, as {name: ..., option: ...}."""
    longest: int = Field(ge=1)
    """Tokens from which on the length makes no more difference."""
    right_from: float = 1.0
    """Lowest score of `of` that is right."""
    right: tuple[float, float] = (1.0, 0.5)
    """Worth of a right answer of no length, and of the longest."""
    wrong: tuple[float, float] = (-0.5, 0.0)
    """Worth of a wrong answer of no length, and of the longest."""
    _judge: Any = PrivateAttr(None)

    @model_validator(mode="after")
    def _builds_its_judge(self, info: ValidationInfo) -> CosineLength:
        if "name" not in self.of:
            raise ValueError(f"of is {self.of!r}; expected a reward as {{name: ..., option: ...}}")
        self._judge = build("reward", self.of, (info.context or {}).get("base"))
        return self

    def limits(self) -> tuple[float | None, float | None]:
        """The smallest and the largest of the four worths."""
        return min(self.right + self.wrong), max(self.right + self.wrong)

    def inputs(self) -> tuple[Need, ...]:
        """A text, and what the judging reward needs."""
        return tuple(dict.fromkeys((*self.needs, *self._judge.inputs())))

    def setup(self, device: torch.device) -> None:
        """Let the judging reward load what it needs."""
        self._judge.setup(device)

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """One number per sample; None where the judging reward has none. Raises what it raises."""
        judged = [sample for sample in samples if not lacking(self._judge, sample)]
        verdicts = iter(self._judge.score(judged) if judged else [])
        return [None if lacking(self._judge, sample) else self._one(sample, next(verdicts)) for sample in samples]

    def _one(self, sample: Sample, verdict: float | None) -> float | None:
        if verdict is None:
            return None
        start, end = self.right if verdict >= self.right_from else self.wrong
        return cosine_value(num_tokens(sample), self.longest, start, end)
