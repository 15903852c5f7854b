"""What surrogates on finished samples have in common: how these are noised, and which older model they are compared with."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from mmrl.advantage.types import Following
from mmrl.generative.forward.renoise import Noised
from mmrl.objective.forward import Forward, Levels, Weighting
from mmrl.objective.surrogate import Surrogate
from mmrl.objective.terms import Need, Replays


class ForwardSurrogate(Surrogate):
    """Base: the steps are noise levels of the finished sample, whatever it was drawn by."""

    needs_log_prob = False
    whole_groups: ClassVar[bool] = False
    """A chunk must hold complete groups, which then share their levels and noise."""

    times: int = Field(ge=1)
    """Noise levels per sample and rollout."""
    levels: Levels = "uniform"
    """How they are drawn; `schedule`: levels of the rollout's own schedule, none twice."""
    t_min: float = Field(default=0.001, gt=0, lt=1)
    """No level is below (uniform, logit_normal)."""
    t_max: float = Field(default=1.0, gt=0, le=1)
    """No level is above (uniform, logit_normal)."""
    shift: float = Field(default=1.0, gt=0)
    """Move levels to high noise (uniform, logit_normal): t becomes s t / (1 + (s - 1) t)."""

    @model_validator(mode="after")
    def _levels_fit(self) -> ForwardSurrogate:
        if self.t_min >= self.t_max:
            raise ValueError(f"t_min {self.t_min} must be below t_max {self.t_max}")
        given = self.changed("t_min", "t_max", "shift")
        if self.levels == "schedule" and given:
            raise ValueError(f"{given[0]} is not read with levels: schedule")
        return self

    def changed(self, *options: str) -> list[str]:
        """Those of `options` that are not at their default."""
        return [name for name in options if getattr(self, name) != type(self).model_fields[name].default]

    @property
    def reads_old(self) -> bool:
        return False

    def view(self, weight: Weighting = "uniform", reference_guidance: float | None = None) -> Forward:
        whole = self.whole_groups
        return Forward(
            self.times, self.levels, self.t_min, self.t_max, self.shift, whole, weight, reference_guidance, whole
        )

    @property
    def forward(self) -> Forward:
        return self.view()


class OldSurrogate(ForwardSurrogate):
    """Base: compares with an older model `old`, the reference or a slow copy of the weights."""

    old: Literal["reference", "ema"] = "reference"
    """`ema`: a slow copy, which follows by `decay`, `rate`, `start` and `every`."""
    decay: float = Field(default=0.5, ge=0, le=1)
    """The slow copy becomes d times itself plus (1 - d) times the weights; d = min(rate (n - start), decay) at optimizer step n."""
    rate: float | None = Field(default=0.001, gt=0)
    """Null: d is `decay` from the beginning."""
    start: int = Field(default=0, ge=0)
    every: int | None = Field(default=None, ge=1)
    """Optimizer steps between two moves of the slow copy; default: those of a rollout."""

    @model_validator(mode="after")
    def _copy_is_kept(self) -> OldSurrogate:
        given = self.changed("decay", "rate", "start", "every")
        if self.old == "reference" and given:
            raise ValueError(f"{given[0]} says how a slow copy follows, but old is the reference; set old: ema")
        return self

    @property
    def needs(self) -> tuple[Need, ...]:
        return (("original", self.old),)

    @property
    def follows(self) -> Following | None:
        return Following(self.decay, self.every, self.rate, self.start) if self.old == "ema" else None

    def older(self, others: Replays) -> Noised:
        """What the older model predicts for a chunk."""
        found: Noised = others["original", self.old].dist
        return found
