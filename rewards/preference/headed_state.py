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
UNUSED = re.compile(r"^lm_head\.weight$|\.rotary_(pos_)?emb\.inv_freq$")
"""What a file may hold beyond the model: nothing is generated, and frequencies are computed."""

LORA = re.compile(r"^(?P<module>.+)\.lora_(?P<side>[AB])(\.(?P<adapter>[^.]+))?\.weight$")
BASE = re.compile(r"^(?P<module>.+)\.base_layer\.(?P<what>weight|bias)$")


def merged(
    state: Mapping[str, Tensor], alpha: Any, file: str, rank_root: bool = False, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """`W + alpha / r * B A` for every adapted weight, computed in float32 and kept in `dtype` (None: W's); `r` is the height of A.

    `rank_root` divides by the root of r (rank-stabilised LoRA). Source: Hu et al. 2021 (arXiv 2106.09685). Raises UserError for half
    an adapter, one without its weight or of another shape, two of one weight, or where there are adapters and `alpha` is not known.
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
    if sides and (isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or alpha <= 0):
        raise UserError(f"'{file}' has LoRA adapters with lora_alpha {alpha!r}; expected a positive number")
    for module, own in sides.items():
        weight = plain.get(f"{module}.weight")
        if set(own) != {"A", "B"} or weight is None:
            lacks = "its weight" if weight is None else f"lora_{'AB'.strip(''.join(own))}"
            raise UserError(f"'{file}' has an adapter of '{module}' without {lacks}")
        a, b = own["A"], own["B"]
        if a.ndim != 2 or b.ndim != 2 or b.shape[1] != len(a) or (len(b), a.shape[1]) != tuple(weight.shape):
            shapes = f"A {tuple(a.shape)} and B {tuple(b.shape)} for a weight {tuple(weight.shape)}"
            raise UserError(f"'{file}' has an adapter of '{module}' of another shape: {shapes}")
        scale = alpha / (len(a) ** 0.5 if rank_root else len(a))
        plain[f"{module}.weight"] = (weight.float() + scale * (b.float() @ a.float())).to(dtype or weight.dtype)
    return plain


def renamed(name: str) -> str:
    """A weight's name in `Qwen2VLModel` or `Qwen2_5_VLModel`; only the beginning is ever replaced."""
    for old, new in PREFIXES:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def plain_name(name: str) -> str:
    """The same without peft's prefix; the head's weights and its adapters keep their names."""
    return renamed(name.removeprefix(PEFT))


def divided(state: Mapping[str, Tensor], file: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of the backbone, by its names, and of the head, without their prefix. Raises UserError where there is no head, or one
    weight is there by two names."""
    backbone: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for name, value in state.items():
        own = plain_name(name)
        prefix = next((one for one in HEADS if own.startswith(one)), None)
        if prefix is None and UNUSED.search(own):
            continue
        part, key = (backbone, own) if prefix is None else (head, own.removeprefix(prefix))
        if key in part:
            raise UserError(f"'{file}' holds the weight '{own}' twice, the second time as '{name}'")
        part[key] = value
    if not head:
        raise UserError(f"'{file}' has no reward head: no weight's name begins with {' or '.join(HEADS)}")
    return backbone, head


def cast(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Any]:
    """The weights in `dtype`; those that have it already are shared."""
    return {name: value.to(dtype) for name, value in state.items()}
