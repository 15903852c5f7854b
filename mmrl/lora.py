"""LoRA on any module through peft's layers: add, switch off for the reference, merge, write."""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmrl.errors import UserError

ADAPTER = "mmrl"


def find_targets(
    module: nn.Module, targets: Sequence[str], excluded: Sequence[str] = (), aside: Sequence[str] = ()
) -> list[str]:
    """Full names of the linear and convolution layers that `targets` (names, name endings or patterns) mean, without those
    below the `excluded` prefixes; layers below the `aside` prefixes are meant only by a target that fits no other layer.

    Raises UserError naming a target that fits none, with the nearest names."""
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    found = [name for name, layer in module.named_modules() if isinstance(layer, kinds) and "lora_" not in name]
    names = [name for name in (n.removesuffix(".base_layer") for n in found) if not below(name, excluded)]
    chosen: list[str] = []
    for target in targets:
        fits = [name for name in names if fnmatchcase(name, target) or name.endswith(f".{target}")]
        if not fits:
            endings = sorted({".".join(name.split(".")[-k:]) for name in names for k in (1, 2, 3)})
            near = difflib.get_close_matches(target, endings, n=3, cutoff=0.4)
            hint = f"; near names: {', '.join(near)}" if near else f"; it has: {', '.join(endings[:8])} ..."
            layer = "layer that is not frozen" if excluded else "layer"
            raise UserError(f"LoRA target '{target}' matches no {layer} of {type(module).__name__}{hint}")
        chosen += [name for name in fits if not below(name, aside)] or fits
    return list(dict.fromkeys(chosen))


def below(name: str, prefixes: Sequence[str]) -> bool:
    """Whether a dotted name is one of `prefixes` or lies below one."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def add(module: Any, rank: int, alpha: int, names: Sequence[str], seed: int) -> Any:
    """Add a LoRA (gaussian A, zero B, no dropout; float32) to the layers `names`, so that only it is trainable.

    The weights depend on `seed`. Returns the peft config.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=list(names), init_lora_weights="gaussian", lora_dropout=0.0
    )
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, module, adapter_name=ADAPTER)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.float()
    return config


def layers(module: nn.Module) -> dict[str, Any]:
    """The layers of `module` that carry an adapter, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: layer for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}


@contextmanager
def disabled(module: nn.Module) -> Iterator[None]:
    """The base model: the forward passes inside do not see the adapter."""
    grads = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    found = layers(module).values()
    for layer in found:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in found:
            layer.enable_adapters(True)
        for parameter, grad in grads:
            parameter.requires_grad_(grad)


def merge(module: nn.Module) -> None:
    """Add the adapter to the base weights and take it away, in place."""
    for name, layer in layers(module).items():
        layer.merge()
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, layer.get_base_layer())
    for name in ("peft_config", "_hf_peft_config_loaded"):
        if name in vars(module):
            delattr(module, name)


def merged_copy(module: Any) -> Any:
    """A copy of `module` with its adapter merged; `module` itself is not touched."""
    twin = copy.deepcopy(module)
    merge(twin)
    return twin


def adapter_state(module: nn.Module) -> dict[str, Tensor]:
    """The adapter's tensors under the names that peft gives them in a file."""
    return {
        f"base_model.model.{name.replace(f'.{ADAPTER}', '')}": value.detach().cpu().contiguous()
        for name, value in module.state_dict().items()
        if "lora_" in name
    }


def write(module: nn.Module, config: Any, folder: Path) -> None:
    """`adapter_model.safetensors` and `adapter_config.json` for `PeftModel.from_pretrained`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(adapter_state(module), folder / "adapter_model.safetensors")
    values = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    values["inference_mode"] = True
    (folder / "adapter_config.json").write_text(json.dumps(values, indent=2, default=str), encoding="utf-8")
