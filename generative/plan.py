"""The `rollout:` block of a stage and the `sampling:` block of the evaluation, for models that denoise."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

DEFAULT_LEVEL = {"flow_sde": 0.7, "dance_sde": 0.3, "cps": 0.8, "ddim": 1.0, "ode": 0.0}
LARGEST_LEVEL = {"cps": 1.0, "ddim": 1.0}


class Sampler(BaseModel):
    """How a stochastic step is drawn: `kind` and its noise `level` (a, eta; default by kind)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["flow_sde", "dance_sde", "cps", "ddim", "ode"]
    level: float = Field(default_factory=lambda data: DEFAULT_LEVEL.get(data.get("kind"), 0.0), ge=0)
    truncate: PositiveFloat | None = None
    """flow_sde: no step has a larger std than this (LongCat-Video: 0.45)."""

    @model_validator(mode="after")
    def _level_fits(self) -> Sampler:
        if self.kind == "ode" and self.level > 0:
            raise ValueError(f"kind 'ode' draws no noise, but level is {self.level}; leave level out or choose an SDE")
        most = LARGEST_LEVEL.get(self.kind)
        if most is not None and self.level > most:
            raise ValueError(f"level {self.level} is too large for '{self.kind}'; expected a number in (0, {most}]")
        if self.truncate is not None and self.kind != "flow_sde":
            raise ValueError(f"truncate bounds the noise of 'flow_sde', not that of '{self.kind}'; leave it out")
        return self


class Sampling(BaseModel):
    """How images are drawn for evaluation and for users: by the ODE (DDIM with eta 0), each from its own start noise."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    num_steps: PositiveInt = 10
    solver: Literal["euler", "dpm2m"] = "euler"
    """How steps without noise are taken: `euler` (DDIM with eta 0), or DPM-Solver++ of second order (flows)."""
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


class DiffusionSampling(Sampling):
    """Sampling of a diffusion model."""

    solver: Literal["euler"] = "euler"
    """DDIM with eta 0."""


class Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _in_order(value: tuple[int, ...]) -> tuple[int, ...]:
    if sorted(set(value)) != list(value) or value[0] < 0:
        raise ValueError(f"got {list(value)}; expected different steps in rising order, from 0")
    return value


Steps = Annotated[tuple[int, ...], Field(min_length=1), AfterValidator(_in_order)]


class Branch(Block):
    """BranchGRPO: the samples of a group are the leaves of one tree that splits at the steps `at` into `factor` children each.

    The noise of siblings is `(z0 + q z) / sqrt(1 + q^2)` with z0 in common and q = `spread`: marginally standard normal, correlated by
    1 / (1 + q^2). `noise: scaled` is the form of the original code, q z without z0, which is not what the log-prob says.
    """

    at: Steps = (0, 3, 6, 9)
    factor: int = Field(default=2, ge=2)
    spread: PositiveFloat = 4.0
    noise: Literal["correlated", "scaled"] = "correlated"

    @property
    def leaves(self) -> int:
        return self.factor ** len(self.at)


class FanOut(Block):
    """TempFlow-GRPO: the group follows the ODE from one start noise; at each of the steps `at` an equal share of its samples takes one
    stochastic step and then follows the ODE to the end. Only that step is trained, against the samples of the same step."""

    at: Steps


class Flash(Block):
    """MixGRPO-Flash: after the last selected step the rest is made in `ratio` as many steps of second order, always to sigma 0."""

    ratio: float = Field(default=0.4, gt=0, le=1)


class DenoisingPlan(Sampling):
    """A rollout. `num_steps` is S: every denoising transition is one step of the policy, with the same guidance in the
    rollout and in training."""

    sampler: Sampler
    stochastic: Literal["all", "selected"] = "all"
    """Which steps draw noise: all of them, or only those that this iteration may train (the others follow the ODE)."""
    start_noise: Literal["shared", "separate"] = "separate"
    """Whether the samples of one group start from the same noise."""
    branch: Branch | None = None
    fan_out: FanOut | None = None
    flash: Flash | None = None
    decode: Literal["final", "clean"] = "final"
    """What is decoded: the last latent, or the clean prediction of the last network call (DanceGRPO, BranchGRPO), which the
    noise of the last step does not reach."""

    @model_validator(mode="after")
    def _no_contradiction(self) -> DenoisingPlan:
        noiseless = self.sampler.kind == "ode" or self.sampler.level == 0
        if self.solver == "dpm2m" and not noiseless and self.stochastic == "all":
            raise ValueError(
                "solver dpm2m is for steps without noise, and every step draws some; add stochastic: selected"
            )
        if self.sampler.kind == "ode" and self.stochastic == "selected":
            raise ValueError("stochastic: selected asks for noise at the selected steps, but the sampler is 'ode'")
        for name in ("branch", "fan_out"):
            block = getattr(self, name)
            if block is None:
                continue
            if noiseless:
                raise ValueError(f"{name} needs noise at its steps, but the sampler draws none; use an SDE")
            if self.start_noise != "shared":
                raise ValueError(f"{name} grows from one start noise per group; add start_noise: shared")
            if block.at[-1] >= self.num_steps:
                raise ValueError(
                    f"{name}.at names step {block.at[-1]}, but there are {self.num_steps} (0 to {self.num_steps - 1})"
                )
            if self.decode == "clean" and block.at[-1] == self.num_steps - 1:
                raise ValueError(f"{name}.at names the last step, whose noise decode: clean does not see")
            if self.sampler.kind == "cps" and block.at[-1] == self.num_steps - 1:
                raise ValueError(f"{name}.at names the last step, which has no noise under 'cps'")
        if self.branch is not None and self.fan_out is not None:
            raise ValueError("branch and fan_out are two different trees; use one")
        if self.fan_out is not None and self.stochastic == "all":
            raise ValueError("fan_out draws noise at its own steps alone; add stochastic: selected")
        if self.flash is not None:
            self._check_flash()
        return self

    def _check_flash(self) -> None:
        if self.branch is not None or self.fan_out is not None:
            raise ValueError("flash shortens the steps after a window; with branch or fan_out there is no window")
        if self.stochastic == "all":
            raise ValueError("flash follows the ODE after the window; add stochastic: selected")

    def check_group(self, size: int) -> None:
        """Raises ValueError when groups of `size` samples do not fit the tree."""
        if self.branch is not None and size != self.branch.leaves:
            raise ValueError(
                f"branch splits {len(self.branch.at)} times into {self.branch.factor}, so a group has {self.branch.leaves} "
                f"samples, but group_size is {size}"
            )
        if self.fan_out is not None and (size % len(self.fan_out.at) or size // len(self.fan_out.at) < 2):
            raise ValueError(
                f"fan_out divides a group evenly over its {len(self.fan_out.at)} steps, two samples or more for each, but "
                f"group_size is {size}; use a multiple of {len(self.fan_out.at)} from {2 * len(self.fan_out.at)} on"
            )

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


class DiffusionPlan(DiffusionSampling, DenoisingPlan):
    """Rollout of a diffusion model: DDIM with noise eta = `level`."""

    sampler: Sampler = Sampler(kind="ddim")

    @model_validator(mode="after")
    def _ddim_kind(self) -> DiffusionPlan:
        if self.flash is not None:
            raise ValueError("flash is defined for flow-matching models; leave it out")
        if self.sampler.kind not in ("ddim", "ode"):
            raise ValueError(
                f"a diffusion model has no sampler '{self.sampler.kind}'; use {self._valid_samplers()} or ode"
            )
        return self

    def _valid_samplers(self) -> str:
        return "ddim (level in (0, 1], default 1.0)"
