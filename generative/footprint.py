"""About how much memory a stage takes on each GPU, before any weight is there: counted on the meta device where it can be.

Assumptions:
- every process holds all weights (data parallel); a VAE is float32;
- trained weights are float32 with a float32 gradient and AdamW's two moments (16 bytes each), 4 more for an EMA, and for a slow
  policy that the surrogate reads; a full
  fine-tuning with a reference keeps a frozen copy in the model's dtype;
- activations of a transformer block in 16 bits are 34 bytes per token and channel, attention matrices not counted (a fused
  kernel); Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models". With gradient
  checkpointing every block keeps 2 bytes and one block is recomputed. UNets have no such formula: theirs are left out, and that is said;
- decoding holds three float32 maps of 128 channels at full size, of one picture or of a video's frames that share a latent frame.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import Any

from torch import nn

from mmrl import lora
from mmrl.generative.published import PUBLISHED, TOKENS, Published

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
GIB = 2**30


@dataclass(frozen=True)
class Footprint:
    """Bytes by part; parts that do not happen at the same time (`update`, `rollout`, `decoding`) count by the largest."""

    always: dict[str, float]
    by_turns: dict[str, float]
    trained: int
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        return sum(self.always.values()) + max(self.by_turns.values(), default=0.0)

    def line(self) -> str:
        """In one line of text, in GiB."""
        always = " + ".join(f"{name} {size / GIB:.1f}" for name, size in self.always.items())
        turns = ", ".join(f"{name} {size / GIB:.1f}" for name, size in self.by_turns.items())
        turns = f" + the largest of ({turns})" if turns else ""
        notes = "".join(f"; {note}" for note in self.notes)
        return (
            f"memory per GPU: about {self.total / GIB:.0f} GiB = {always}{turns}; "
            f"{self.trained / 1e6:,.1f} M parameters trained{notes}"
        )


def known(path: str, network_name: str) -> Published | None:
    """What a checkpoint is made of: from a local folder's files, or from the table of published ones; else None."""
    folder = Path(path)
    if not folder.is_dir():
        return PUBLISHED.get(path)
    config = json.loads((folder / network_name / "config.json").read_text(encoding="utf-8"))
    name = config.pop("_class_name")
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    parts = {part.name: _count_files(part) for part in folder.iterdir() if part.is_dir()}
    networks = sum(part.startswith(network_name) for part in parts)
    vae = parts.pop("vae", 0)
    others = sum(number for part, number in parts.items() if not part.startswith(network_name))
    return Published(name, own, encoders=others, vae=vae, networks=networks)


def footprint(
    found: Published,
    dtype: str,
    train: Any,
    targets: Sequence[str],
    plan: Any,
    micro_batch: int,
    reference: bool,
    copies: int,
) -> Footprint:
    """Of one rl stage: `train` and `plan` are its blocks, `micro_batch` the rows of an update, `targets` the family's LoRA targets,
    `copies` the slow copies of what is trained (EMA; a policy that follows). Raises UserError for a LoRA target that the network does not have."""
    network = _meta_network(found)
    size = BYTES[dtype]
    count = _count(network)
    trained = found.networks * _trained(network, train, targets)
    if "text_encoders" in (train.parts or ()):
        trained += int(found.encoders)
    always = {
        "weights": found.networks * count * size + found.encoders * size + found.vae * 4.0,
        "training": trained * (16.0 + 4.0 * copies),
    }
    if train.mode == "full":
        always["weights"] -= trained * size  # they are float32 while they are trained
        if reference:
            always["reference"] = float(trained * size)
    shape = _shape(plan, found)
    by_turns = {"decoding": (plan.decode_batch or plan.micro_batch) * prod(shape[:2]) * 128 * 4.0 * 3}
    blocks, width = _depth(network)
    tokens = _tokens(found, shape)
    if tokens is None:
        return Footprint(always, by_turns, trained, ("activations of the UNet are not in it",))
    block = 34.0 * size / 2 * tokens * width
    kept = blocks * 2.0 * tokens * width + block if train.gradient_checkpointing else blocks * block
    by_turns |= {"update": micro_batch * kept, "rollout": plan.micro_batch * block}
    how = "with" if train.gradient_checkpointing else "without"
    rows = f"{micro_batch} rows of {tokens} tokens {how} gradient checkpointing"
    return Footprint(always, by_turns, trained, (rows,))


def _meta_network(found: Published) -> nn.Module:
    import diffusers
    import torch

    kind = getattr(diffusers, found.network)
    with torch.device("meta"):
        return kind.from_config(dict(found.config))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _trained(network: nn.Module, train: Any, targets: Sequence[str]) -> int:
    """Parameters of one network that `train` trains."""
    if train.mode == "lora":
        layers = [network.get_submodule(name) for name in lora.find_targets(network, train.targets or targets)]
        return sum(train.rank * _sides(layer) for layer in layers)
    if train.parts is not None and all(part == "text_encoders" for part in train.parts):
        return 0
    patterns = train.parameters or ("*",)
    named = network.named_parameters()
    return sum(value.numel() for name, value in named if any(fnmatchcase(name, one) for one in patterns))


def _sides(layer: Any) -> int:
    """Entries of both LoRA factors per rank."""
    if isinstance(layer, nn.Linear):
        return layer.in_features + layer.out_features
    return layer.in_channels * prod(layer.kernel_size) + layer.out_channels


def _depth(network: Any) -> tuple[int, int]:
    """Transformer blocks and their width."""
    config = network.config
    names = ("num_layers", "num_single_layers", "n_layers", "num_visual_blocks")
    blocks = sum(int(config.get(name) or 0) for name in names)
    width = config.get("dim") or config.get("model_dim")
    if width is None:
        heads, size = config.get("num_attention_heads"), config.get("attention_head_dim")
        width = heads * size if isinstance(heads, int) and isinstance(size, int) else 0
    return blocks, int(width)


def _shape(plan: Any, found: Published) -> tuple[int, int, int]:
    return (
        plan.height or found.height,
        plan.width or found.width,
        plan.num_frames or found.frames,
    )


def _tokens(found: Published, shape: tuple[int, int, int]) -> int | None:
    """Tokens of one row; None for a network that is no transformer."""
    known = TOKENS.get(found.network)
    if known is None:
        return None
    frames = (shape[2] - 1) // known.frames + 1
    picture = (shape[0] // known.pixels) * (shape[1] // known.pixels)
    return picture * (frames + found.sources) + known.text


def _count_files(folder: Path) -> int:
    """Parameters in the safetensors files of a folder, from their headers."""
    from safetensors import safe_open

    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            total += sum(prod(opened.get_slice(key).get_shape()) for key in opened.keys())  # noqa: SIM118
    return total
