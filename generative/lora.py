"""LoRA on a diffusers network through peft: add, switch off for the reference, merge."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mmrl.errors import UserError

ADAPTER = "mmrl"


def check_targets(network: nn.Module, targets: Sequence[str]) -> None:
    """Raises UserError when a target matches no linear or convolution layer, naming it and the nearest module names."""
    layers = (nn.Linear, nn.Conv2d, nn.Conv3d)
    found = [name for name, module in network.named_modules() if isinstance(module, layers) and "lora_" not in name]
    names = [name.removesuffix(".base_layer") for name in found]
    for target in targets:
        if any(name == target or name.endswith(f".{target}") for name in names):
            continue
        endings = {".".join(name.split(".")[-k:]) for name in names for k in (1, 2, 3)}
        near = difflib.get_close_matches(target, sorted(endings), n=3, cutoff=0.4)
        hint = f"; near names: {', '.join(near)}" if near else f"; it has: {', '.join(sorted(endings)[:8])} ..."
        raise UserError(f"LoRA target '{target}' matches no layer of {type(network).__name__}{hint}")


def add(network: Any, rank: int, alpha: int, targets: Sequence[str], seed: int) -> None:
    """Add a LoRA (gaussian A, zero B, no dropout; float32) so that only it is trainable. The weights depend on `seed`.

    `targets` have passed `check_targets`.
    """
    from peft import LoraConfig

    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights="gaussian", lora_dropout=0.0
    )
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        network.add_adapter(config, adapter_name=ADAPTER)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.float()


@contextmanager
def disabled(network: Any) -> Iterator[None]:
    """The base model: the forward passes inside do not see the adapter."""
    grads = [(p, p.requires_grad) for p in network.parameters()]
    network.disable_adapters()
    try:
        yield
    finally:
        network.enable_adapters()
        for parameter, grad in grads:
            parameter.requires_grad_(grad)


def merge(network: Any) -> None:
    """Add the adapter to the base weights and take it away, in place."""
    network.fuse_lora()
    network.unload_lora()


def merged_copy(network: Any) -> Any:
    """A copy of the network with its adapter merged; the network itself is not touched."""
    twin = copy.deepcopy(network)
    merge(twin)
    return twin
