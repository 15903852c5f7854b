"""Checkpoints that hold adapters alone: LoRA and what else was trained, over the weights of the base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mmrl.errors import UserError
from mmrl.rewards.preference.headed_state import LORA, plain_name

FILES = ("adapter_model.safetensors", "adapter_model.bin")
CONFIG = "adapter_config.json"
TRAINED = "non_lora_state_dict.pth"
"""Beside the adapters: the head, and other weights that were trained whole (embeddings, the vision tower)."""
OTHER_FORMULAS = ("use_dora", "rank_pattern", "alpha_pattern", "layer_replication", "use_qalora", "alora_invocation_tokens",
                  "exclude_modules", "layers_to_transform", "modules_to_save", "use_bdlora", "arrow_config")  # fmt: skip
"""Options of peft that must be off: with them the weights are another formula, or of other places."""
STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""`init_lora_weights` that leave the base's own weights as they are."""


def read_adapter_config(path: str) -> dict[str, Any]:
    """`adapter_config.json` of peft. Raises UserError for anything but plain LoRA."""
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"'{path}' is no JSON: {error}") from error
    if not isinstance(config, Mapping) or config.get("peft_type") != "LORA":
        got = config.get("peft_type") if isinstance(config, Mapping) else type(config).__name__
        raise UserError(f"'{path}' has peft_type {got!r}; expected 'LORA'")
    on = {key: config[key] for key in OTHER_FORMULAS if config.get(key)}
    if config.get("init_lora_weights") not in STARTS:
        on["init_lora_weights"] = config["init_lora_weights"]
    if on:
        key, value = next(iter(on.items()))
        raise UserError(f"'{path}' says {key} is {value!r}; only plain LoRA can be read here")
    rank = config.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise UserError(f"'{path}' says r is {rank!r}; expected a positive whole number")
    return dict(config)


def over_base(
    base: Mapping[str, Tensor],
    trained: Mapping[str, Tensor],
    adapters: Mapping[str, Tensor],
    config: Mapping[str, Any],
    file: str,
) -> dict[str, Tensor]:
    """The base's weights, those that were trained whole in their place, and the adapters, not merged: all by the names of `plain_name`.

    Raises UserError where an adapter has another rank than the config says, or a module of `target_modules` has none.
    """
    found = dict(base)
    for part in (trained, adapters):
        found |= {plain_name(name): value for name, value in part.items()}
    modules = set()
    for name, value in found.items():
        match = LORA.match(name)
        if match is None:
            continue
        modules.add(match["module"])
        rank = value.shape[0 if match["side"] == "A" else -1]
        if rank != config["r"]:
            raise UserError(f"'{file}' has an adapter of rank {rank} ('{name}'); its config says r is {config['r']}")
    if not modules:
        raise UserError(f"'{file}' has no adapter")
    targets = config.get("target_modules")
    lacking = [] if not isinstance(targets, list) else without(targets, base, modules)
    if lacking:
        raise UserError(f"'{file}' lacks adapters of {', '.join(lacking[:4])}{', ...' if len(lacking) > 4 else ''}")
    return found


def without(targets: list[str], base: Mapping[str, Tensor], adapted: set[str]) -> list[str]:
    """Modules that `targets` (names, or their ends) mean and that have no adapter; a target that means none is named itself."""
    modules = [name.removesuffix(".weight") for name in base if name.endswith(".weight")]
    lacking: list[str] = []
    for target in (plain_name(one) for one in targets):
        meant = [one for one in modules if one == target or one.endswith(f".{target}")]
        lacking += [one for one in meant if one not in adapted] if meant else [target]
    return sorted(set(lacking))
