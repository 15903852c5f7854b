"""The `rollout:` block of a stage and the `sampling:` block of the evaluation, for models that denoise."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

DEFAULT_LEVEL = {"flow_sde": 0.7, "dance_sde": 0.3, "cps": 0.8, "ddim": 1.0, "ode": 0.0}
LARGEST_LEVEL = {"cps": 1.0, "ddim": 1.0}


class Sampler(BaseModel):
    """How a stochastic step is drawn: `kind` and its noise `level` (a, eta; default by kind)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["flow_sde", "dance_sde", "cps", "ddim", "ode"]
    level: float = Field(default_factory=lambda data: DEFAULT_LEVEL.get(data.get("kind"), 0.0), ge=0)

    @model_validator(mode="after")
    def _level_fits(self) -> Sampler:
        if self.kind == "ode" and self.level > 0:
            raise ValueError(f"kind 'ode' draws no noise, but level is {self.level}; leave level out or choose an SDE")
        most = LARGEST_LEVEL.get(self.kind)
        if most is not None and self.level > most:
            raise ValueError(f"level {self.level} is too large for '{self.kind}'; expected a number in (0, {most}]")
        return self


class Sampling(BaseModel):
    """How images are drawn for evaluation and for users: by the ODE (DDIM with eta 0), each from its own start noise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_steps: PositiveInt = 10
    guidance_scale: float = Field(default=1.0, ge=1)
    """Classifier-free guidance; 1.0 is none and costs half. Guidance-distilled models are told the number, at no cost."""
    height: PositiveInt | None = None
    width: PositiveInt | None = None
    """Size in pixels; default: what the model was made for."""
    num_frames: PositiveInt | None = None
    """Frames of a video; default: what the model was made for."""
    fps: PositiveInt | None = None
    """Frames per second of a video; default: what the model was made for."""
    negative_prompt: str = ""
    """What guidance moves away from."""
    micro_batch: PositiveInt = 64
    """Images per forward pass without gradient."""
    decode_batch: PositiveInt | None = None
    """Images (videos) that the VAE decodes at once; default: `micro_batch`."""


class FlowSampling(Sampling):
    """Sampling of a flow-matching model."""

    shift: PositiveFloat | None = None
    """Use `shift(linspace(1, 0))` instead of the model's own schedule."""


class DenoisingPlan(Sampling):
    """A rollout. `num_steps` is S: every denoising transition is one step of the policy, with the same guidance in the
    rollout and in training."""

    sampler: Sampler
    stochastic: Literal["all", "selected"] = "all"
    """Which steps draw noise: all of them, or only those that this iteration may train (the others follow the ODE)."""
    start_noise: Literal["shared", "separate"] = "separate"
    """Whether the samples of one group start from the same noise."""

    @model_validator(mode="after")
    def _no_contradiction(self) -> DenoisingPlan:
        if self.sampler.kind == "ode" and self.stochastic == "selected":
            raise ValueError("stochastic: selected asks for noise at the selected steps, but the sampler is 'ode'")
        return self

    def check_likelihood(self) -> None:
        """Raises ValueError when no step has a density, so that there is no log-prob to train on."""
        kind, level = self.sampler.kind, self.sampler.level
        valid = self._valid_samplers()
        if kind == "ode":
            raise ValueError(
                f"sampler 'ode' is deterministic and has no log-prob; this objective needs one of: {valid}"
            )
        if level == 0:
            raise ValueError(f"sampler '{kind}' with level 0 is deterministic and has no log-prob; use one of: {valid}")

    def _valid_samplers(self) -> str:
        return "flow_sde (level 0.7), dance_sde (level 0.3), cps (level 0.8), ddim (level 1.0)"


class FlowPlan(DenoisingPlan, FlowSampling):
    """Rollout of a flow-matching model."""

    sampler: Sampler = Sampler(kind="flow_sde")

    @model_validator(mode="after")
    def _flow_kind(self) -> FlowPlan:
        if self.sampler.kind == "ddim":
            raise ValueError(f"a flow-matching model has no sampler 'ddim'; use one of: {self._valid_samplers()}, ode")
        return self

    def _valid_samplers(self) -> str:
        return "flow_sde (level 0.7), dance_sde (level 0.3), cps (level 0.8)"


class DiffusionPlan(DenoisingPlan):
    """Rollout of a diffusion model: DDIM with noise eta = `level`."""

    sampler: Sampler = Sampler(kind="ddim")

    @model_validator(mode="after")
    def _ddim_kind(self) -> DiffusionPlan:
        if self.sampler.kind not in ("ddim", "ode"):
            raise ValueError(
                f"a diffusion model has no sampler '{self.sampler.kind}'; use {self._valid_samplers()} or ode"
            )
        return self

    def _valid_samplers(self) -> str:
        return "ddim (level in (0, 1], default 1.0)"
