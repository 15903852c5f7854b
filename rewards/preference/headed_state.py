"""Weight files of Qwen-VL backbones with a head: names of older transformers, adapters that are not merged, and the head's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import UserError

PEFT = "base_model.model."
PREFIXES = (
    ("model.visual.", "visual."),
    ("model.language_model.", "language_model."),
    ("visual.", "visual."),
    ("model.", "language_model."),
)
"""Prefix in a file -> prefix in `Qwen2VLModel`; the first that fits. The last two are transformers before 4.52."""
HEADS = ("rm_heads.", "rm_head.")
UNUSED = ("lm_head.weight", "rotary_emb.inv_freq", "rotary_pos_emb.inv_freq")
"""What a file may hold beyond the model: nothing is generated, and frequencies are computed."""

LORA = re.compile(r"^(?P<module>.+)\.lora_(?P<side>[AB])(\.(?P<adapter>[^.]+))?\.weight$")
BASE = re.compile(r"^(?P<module>.+)\.base_layer\.(?P<what>weight|bias)$")


def merged(state: Mapping[str, Tensor], alpha: float | None, file: str, rank_root: bool = False) -> dict[str, Tensor]:
    """`W + alpha / r * B A` for every adapted weight, computed in float32 and kept in W's dtype; `r` is the height of A.

    `rank_root` divides by the root of r (rank-stabilised LoRA). Source: Hu et al. 2021 (arXiv 2106.09685). Raises UserError for half
    an adapter, one without its weight, two of one weight, or where there are adapters and `alpha` is not known.
    """
    plain: dict[str, Tensor] = {}
    sides: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        found = LORA.match(name)
        if found is None:
            base = BASE.match(name)
            plain[name if base is None else f"{base['module']}.{base['what']}"] = value
            continue
        own = sides.setdefault(found["module"], {})
        if found["side"] in own:
            raise UserError(f"'{file}' holds two adapters of '{found['module']}'; expected one")
        own[found["side"]] = value
    if sides and alpha is None:
        raise UserError(
            f"'{file}' holds LoRA adapters that are not merged: set lora_alpha to what they were trained with"
        )
    for module, own in sides.items():
        weight = plain.get(f"{module}.weight")
        if set(own) != {"A", "B"} or weight is None:
            lacks = "its weight" if weight is None else f"lora_{'AB'.strip(''.join(own))}"
            raise UserError(f"'{file}' has an adapter of '{module}' without {lacks}")
        assert alpha is not None
        rank = own["A"].shape[0]
        scale = alpha / (rank**0.5 if rank_root else rank)
        plain[f"{module}.weight"] = (weight.float() + scale * (own["B"].float() @ own["A"].float())).to(weight.dtype)
    return plain


def renamed(name: str) -> str:
    """A weight's name in `Qwen2VLModel` or `Qwen2_5_VLModel`; only the beginning is ever replaced."""
    for old, new in PREFIXES:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def divided(state: Mapping[str, Tensor], file: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of the backbone, by its names, and of the head, without their prefix. Raises UserError where there is no head."""
    backbone: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for name, value in state.items():
        own = name.removeprefix(PEFT)
        prefix = next((one for one in HEADS if own.startswith(one)), None)
        if prefix is not None:
            head[own.removeprefix(prefix)] = value
        elif not own.endswith(UNUSED):
            backbone[renamed(own)] = value
    if not head:
        raise UserError(f"'{file}' has no reward head: no weight's name begins with {' or '.join(HEADS)}")
    return backbone, head


def cast(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Any]:
    """The weights in `dtype`; those that have it already are shared."""
    return {name: value.to(dtype) for name, value in state.items()}
