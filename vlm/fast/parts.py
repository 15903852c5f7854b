"""Where the parts of a model that the fast engine calls by hand are found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mmrl.errors import UserError

MODELS = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl"}
STATIC_ROPE = {"default", "linear", "llama3", "yarn"}
"""Rotary tables that depend on the position alone, not on the length of the sequence."""


@dataclass(frozen=True)
class Parts:
    """A ...ForConditionalGeneration of the Qwen-VL line, taken apart; every part is the model's own module.

    `core` holds the vision tower `core.visual` and `core.get_rope_index`; `decoder` is the text model (`embed_tokens`,
    `layers`, `rotary_emb`, `norm`); `head` the bias-free output projection; `deepstack` the number of decoder layers that
    take vision features.
    """

    core: Any
    decoder: Any
    head: nn.Linear
    heads: int
    kv_heads: int
    head_dim: int
    deepstack: int

    @property
    def hidden(self) -> int:
        return self.decoder.config.hidden_size

    @property
    def weight(self) -> Tensor:
        """Output projection (V, h)."""
        return self.head.weight

    @property
    def device(self) -> Any:
        return self.decoder.embed_tokens.weight.device


def parts(model: Any) -> Parts:
    """The parts of `model`, which may be wrapped by peft.

    Raises UserError when `unsupported(model)` gives a reason.
    """
    if reason := unsupported(model):
        raise UserError(f"the fast token engine cannot run this model: {reason}; use scoring: padded")
    base = unwrapped(model)
    decoder = base.model.language_model
    attention = decoder.layers[0].self_attn
    return Parts(
        core=base.model,
        decoder=decoder,
        head=base.lm_head,
        heads=decoder.config.num_attention_heads,
        kv_heads=decoder.config.num_key_value_heads,
        head_dim=attention.head_dim,
        deepstack=len(getattr(base.config.vision_config, "deepstack_visual_indexes", ())),
    )


def unwrapped(model: Any) -> Any:
    """The model under a data-parallel wrapper and under adapters, whose layers stay in place inside it."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def unsupported(model: Any) -> str | None:
    """Why the fast engine cannot run `model`, or None when it can."""
    base = unwrapped(model)
    config = getattr(base, "config", None)
    kind = getattr(config, "model_type", None)
    if (
        kind not in MODELS
        or not hasattr(base, "lm_head")
        or not hasattr(getattr(base, "model", None), "language_model")
    ):
        return f"got a {type(base).__name__}, expected a ...ForConditionalGeneration of {', '.join(sorted(MODELS))}"
    text = base.model.language_model.config
    if type(base.lm_head) is not nn.Linear or base.lm_head.bias is not None:
        return (
            f"its output projection is a {type(base.lm_head).__name__}, expected a plain Linear without bias or adapter"
        )
    if "sliding_attention" in (getattr(text, "layer_types", None) or ()):
        return "it has layers with sliding-window attention"
    if text.attention_dropout:
        return f"attention_dropout is {text.attention_dropout}, expected 0"
    if (rope := base.model.language_model.rotary_emb.rope_type) not in STATIC_ROPE:
        return f"its rotary positions are of type {rope!r}, expected one of {', '.join(sorted(STATIC_ROPE))}"
    if any(type(p).__name__ == "DTensor" for p in base.parameters()):
        return "its parameters are sharded over processes"
    return None
