"""The `train:` block of a stage: what of a vision-language model is trained, and how."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import nn

from mmrl.errors import UserError
from mmrl.weights import Choice

PART = "model"
"""The one module of a vision-language policy."""

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TOWERS = ("visual", "vision_tower", "vision_model")
MERGERS = ("merger", "deepstack_merger_list", "merger_list", "multi_modal_projector", "connector", "projector")


class VlmTrainSpec(BaseModel):
    """Full fine-tuning of all weights or of those that `parameters` names, or a LoRA on the layers `targets`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    mode: Literal["full", "lora"] = "full"
    parameters: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Full: only parameters whose name fits one of these patterns (`*language_model.layers.1.*`); default: all of them."""
    freeze_vision: bool = False
    """Leave the vision tower as it is. What merges its patches into tokens is not part of it."""
    freeze_merger: bool = False
    """Leave the layers between vision tower and language model as they are. With both frozen the features of a prompt's
    pictures are computed once per rollout."""
    gradient_checkpointing: bool = False
    """Compute every layer again in the backward pass instead of keeping what it needs: less memory, more time."""
    rank: PositiveInt = 32
    alpha: PositiveInt = 64
    targets: tuple[str, ...] = Field(default=TARGETS, min_length=1)
    """LoRA: layer names, name endings or patterns. One that fits layers of the language model means those alone; names that
    only the vision tower or the merger have (`qkv`, `*visual*gate_proj`) mean those."""
    seed: int = 0
    """LoRA: seed of its initial weights, the same on every process."""

    @model_validator(mode="before")
    @classmethod
    def _mode_fits(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        full = value.get("mode", "full") == "full"
        for key in ("rank", "alpha", "targets", "seed") if full else ("parameters",):
            given = tuple(value[key]) if isinstance(value.get(key), list) else value.get(key)
            if given not in (None, cls.model_fields[key].default):
                other = "lora" if full else "full"
                raise ValueError(f"{key} belongs to mode: {other}, but mode is {'full' if full else 'lora'}")
        return value

    def choice(self, model: nn.Module) -> Choice:
        """What this means for a loaded model."""
        towers, mergers = vision_parts(model)
        for wanted, found, what in (
            (self.freeze_vision, towers, "freeze_vision"),
            (self.freeze_merger, mergers, "freeze_merger"),
        ):
            if wanted and not found:
                raise UserError(
                    f"train.{what}: no such part of {type(model).__name__} is known by its name; leave it out and name what is "
                    "trained in train.parameters (mode full) or train.targets (mode lora)"
                )
        frozen = (towers if self.freeze_vision else ()) + (mergers if self.freeze_merger else ())
        if self.freeze_vision and not self.freeze_merger:
            frozen = tuple(leaf for tower in towers for leaf in _without(model, tower, mergers))
        return Choice(
            self.mode, (PART,), self.parameters, frozen, self.targets, self.rank, self.alpha, self.seed,
            aside=towers + mergers,
        )  # fmt: skip


def vision_parts(model: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the vision towers, and of the modules that bring their features to the language model (they may lie inside
    a tower, as in Qwen-VL)."""
    names = [name for name, _ in model.named_modules()]
    towers = _outermost([name for name in names if name.rsplit(".", 1)[-1] in TOWERS])
    return towers, _outermost([name for name in names if name.rsplit(".", 1)[-1] in MERGERS])


def _outermost(names: list[str]) -> tuple[str, ...]:
    return tuple(name for name in names if not any(name.startswith(f"{other}.") for other in names))


def _without(model: nn.Module, tower: str, mergers: tuple[str, ...]) -> tuple[str, ...]:
    """Prefixes that cover the tower but not the mergers directly inside it."""
    module = model.get_submodule(tower)
    own = [name for name, _ in (*module.named_children(), *module.named_parameters(recurse=False))]
    return tuple(f"{tower}.{name}" for name in own if f"{tower}.{name}" not in mergers)
