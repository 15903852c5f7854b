"""The `train:` block of a stage: what of a denoising model is trained, and how."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from mmrl.errors import UserError
from mmrl.generative.families.base import Adapter
from mmrl.generative.forward.soar import Soar
from mmrl.weights import Choice

Part = Literal["transformer", "transformer_2", "unet", "text_encoders"]


class TrainSpec(BaseModel):
    """Full fine-tuning of `parts`, or a LoRA on the denoising network (on each expert of one that has several)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    mode: Literal["full", "lora"] = "full"
    parts: tuple[Part, ...] | None = Field(default=None, min_length=1)
    """Full: what is trained; default: the denoising network (every expert) alone."""
    parameters: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Full: only parameters whose name fits one of these patterns (`transformer_blocks.1.attn.*`); default: all of them."""
    rank: PositiveInt = 32
    alpha: PositiveInt = 64
    targets: tuple[str, ...] | None = Field(default=None, min_length=1)
    """LoRA: module names (or name endings); default: the model family's list."""
    seed: int = 0
    """LoRA: seed of its initial weights, the same on every process."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    noise: Literal["uniform", "logit_normal"] = "uniform"
    """Supervised stages of a flow: how noise levels are drawn (a diffusion model always draws timesteps uniformly)."""
    noise_shift: PositiveFloat = 1.0
    """Supervised stages of a flow: sigma becomes shift sigma / (1 + (shift - 1) sigma), so more than 1 trains more on high
    noise, where the layout is decided (the shift of SD3)."""
    loss: Literal["velocity", "balanced", "sample"] = "velocity"
    """Supervised stages of a flow: squared error of the velocity, of the predicted clean sample, or between the two."""
    min_sigma: PositiveFloat = 0.05
    """Supervised stages of a flow that predicts samples: the velocity error divides by no less than this."""
    soar: Soar | None = None
    """Supervised stages of a flow: also train on where the model's own steps lead (SOAR)."""
    caption_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Supervised stages: share of examples seen with an empty caption (needed to sample with guidance)."""

    @model_validator(mode="before")
    @classmethod
    def _mode_fits(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        full = value.get("mode", "full") == "full"
        for key in ("rank", "alpha", "targets", "seed") if full else ("parts", "parameters"):
            if value.get(key) not in (None, cls.model_fields[key].default):
                other = "lora" if full else "full"
                raise ValueError(f"{key} belongs to mode: {other}, but mode is {'full' if full else 'lora'}")
        return value

    def choice(self, adapter: Adapter) -> Choice:
        """What this means for a loaded model. Raises UserError for parts that it does not have."""
        named = self.parts or adapter.networks
        adapter.check_parts(named)
        parts = tuple(part for name in named for part in (adapter.encoders if name == "text_encoders" else (name,)))
        if missing := set(parts) - set(adapter.modules):
            raise UserError(
                f"train.parts: this checkpoint has no '{min(missing)}'; it has: {', '.join(adapter.modules)}"
            )
        targets = self.targets or adapter.lora_targets
        return Choice(
            self.mode, parts, self.parameters, (), targets, self.rank, self.alpha, self.seed, whole_parts=True
        )
