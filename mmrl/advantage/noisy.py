"""Corrections for a verifier that is sometimes wrong.

`false_positive` is P(reward 1 | wrong), `false_negative` is P(reward 0 | right). Source: "Reinforcement Learning with
Verifiable yet Noisy Rewards under Imperfect Verifiers" (arXiv 2510.00915).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from mmrl.advantage.types import Floats, Scored, Shaping
from mmrl.errors import UserError

LEAST_DENOMINATOR = 0.1


def backward(reward: Floats, false_positive: float, false_negative: float) -> Floats:
    """`(R - fp) / max(1 - fp - fn, 0.1)`: its expectation is the clean reward (where the denominator is not clipped)."""
    return (reward - false_positive) / max(1 - false_positive - false_negative, LEAST_DENOMINATOR)


def forward(reward: Floats, false_negative: float) -> Floats:
    """The advantage itself: `fn` where R = 1 and `fn - 1` where R = 0; its expectation is `(1 - fp - fn)(R_clean - 1)`,
    so that only the rate of false negatives is needed. NaN becomes 0."""
    return np.where(np.isnan(reward), 0.0, np.where(reward == 1, false_negative, false_negative - 1))


def appealed(reward: Floats, appeal: Floats) -> float:
    """The rate of false negatives among what is right: `n(R = 0, appeal 1 or more) / (n(R = 1) + n(R = 0, appeal 1 or more))`, over the
    samples that have both scores (NaN: none); 0 where nothing is right."""
    known = ~np.isnan(reward) & ~np.isnan(appeal)
    missed = float((known & (reward == 0) & (appeal >= 1 - 1e-9)).sum())
    right = missed + float((known & (reward == 1)).sum())
    return missed / right if right else 0.0


class NoisyVerifier(Shaping):
    """`backward` undoes the noise of a 0/1 reward (an advantage divided by the group's std does not change by it);
    `forward` replaces the advantage."""

    mode: Literal["backward", "forward"] = "backward"
    false_positive: float = Field(default=0.0, ge=0, lt=1)
    false_negative: float = Field(default=0.0, ge=0, lt=1)
    appeal: str | None = None
    """Name of a reward (of weight 0) that judges again: the rate of false negatives is then that of the step's samples."""

    @property
    def reads_rewards(self) -> tuple[str, ...]:
        return () if self.appeal is None else (self.appeal,)

    @model_validator(mode="after")
    def _better_than_chance(self) -> NoisyVerifier:
        if self.false_positive + self.false_negative >= 1:
            raise ValueError(
                f"false_positive {self.false_positive} + false_negative {self.false_negative} must be below 1: such a "
                "verifier says nothing"
            )
        if self.appeal is not None and self.false_negative:
            raise ValueError(
                f"false_negative {self.false_negative} is estimated with appeal: {self.appeal}; give one of the two"
            )
        return self

    def rate(self, scored: Scored) -> float:
        """The rate of false negatives in force."""
        return self.false_negative if self.appeal is None else appealed(scored.reward, scored.column(self.appeal))

    def metrics(self, scored: Scored) -> dict[str, float]:
        return {} if self.appeal is None else {"noisy_verifier/false_negative": self.rate(scored)}

    def before(self, scored: Scored) -> Scored:
        _check_binary(scored.reward)
        if self.mode == "forward":
            return scored
        return replace(scored, reward=backward(scored.reward, self.false_positive, self.rate(scored)))

    def __call__(self, advantage: Floats, scored: Scored) -> Floats:
        return forward(scored.reward, self.rate(scored)) if self.mode == "forward" else advantage


def _check_binary(reward: Floats) -> None:
    other = reward[~np.isnan(reward) & (reward != 0) & (reward != 1)]
    if other.size:
        raise UserError(
            f"noisy_verifier corrects a reward of 0 or 1, got {other[0]:g}; use one verifiable reward of weight 1"
        )
