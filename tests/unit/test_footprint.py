"""The estimate of memory that `mmrl check` prints for checkpoints that are not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmrl import lora
from mmrl.errors import UserError
from mmrl.generative.families.sd3 import SD3, SD3Adapter
from mmrl.generative.footprint import GIB, Footprint, footprint, known
from mmrl.generative.plan import FlowPlan
from mmrl.generative.published import PUBLISHED
from mmrl.generative.tiny import build_tiny_sd3
from mmrl.generative.train import TrainSpec

LORA = TrainSpec(mode="lora", rank=4, alpha=8)
COUNTS = {  # parameters of the network in billions, as its model card or its files say
    "stabilityai/stable-diffusion-3.5-medium": 2.24,
    "stabilityai/stable-diffusion-3.5-large": 8.06,
    "black-forest-labs/FLUX.1-dev": 11.9,
    "Qwen/Qwen-Image": 20.4,
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": 1.42,
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": 14.3,
    "stabilityai/stable-diffusion-xl-base-1.0": 2.57,
}


def of(path: str, train: TrainSpec = LORA, **options: Any) -> Footprint:
    found = known(path, "transformer")
    assert found is not None
    arguments: dict[str, Any] = {"micro_batch": 2, "reference": False, "copies": 0} | options
    plan = arguments.pop("plan", FlowPlan(micro_batch=1))
    return footprint(found, "bfloat16", train, SD3Adapter.lora_targets, plan, **arguments)


@pytest.mark.parametrize("path", COUNTS)
def test_the_network_of_a_published_checkpoint_has_the_published_size(path: str) -> None:
    train = TrainSpec(mode="full", parts=("transformer" if "xl" not in path else "unet",))
    found = PUBLISHED[path]
    counted = footprint(found, "bfloat16", train, (), FlowPlan(), 1, False, 0).trained
    assert counted / 1e9 == pytest.approx(COUNTS[path], rel=0.01)


def test_lora_and_files_of_a_folder_are_counted_exactly(tmp_path: Path) -> None:
    build_tiny_sd3(tmp_path, layers=2, heads=2, head_dim=16)
    policy = SD3(path=str(tmp_path), dtype="bfloat16")
    policy.load("cpu")
    encoders = sum(
        p.numel() for name in policy.adapter.encoders for p in getattr(policy.adapter.pipe, name).parameters()
    )
    network = sum(p.numel() for p in policy.adapter.network.parameters())
    policy.prepare(LORA, reference=False)
    trained = sum(p.numel() for p in policy.trainable().values())
    found = of(str(tmp_path))
    assert found.trained == trained
    vae = known(str(tmp_path), "transformer").vae  # type: ignore[union-attr]
    assert found.always["weights"] == (network + encoders) * 2 + vae * 4 and found.always["training"] == 16 * trained
    assert of(str(tmp_path), copies=1).always["training"] == 20 * trained
    assert "no estimate" in SD3(path="someone/else").footprint(LORA, FlowPlan(), 1, False, 0)
    assert policy.footprint(LORA, FlowPlan(height=24, width=24), 1, False, 0).startswith("memory per GPU: about 0 GiB")


def test_what_makes_a_stage_larger() -> None:
    path = "stabilityai/stable-diffusion-3.5-medium"
    small, full = of(path), of(path, TrainSpec(mode="full"), reference=True)
    assert full.always["reference"] == full.trained * 2 and full.total > small.total + 15 * full.trained
    more = of(path, micro_batch=4)
    assert more.by_turns["update"] == 2 * small.by_turns["update"] and more.always == small.always
    thrifty = of(path, LORA.model_copy(update={"gradient_checkpointing": True}))
    assert thrifty.by_turns["update"] < small.by_turns["update"] / 8
    assert of(path, plan=FlowPlan(micro_batch=1, height=512, width=512)).by_turns["update"] < small.by_turns["update"]
    assert small.line().count("GiB") == 1 and f"{small.total / GIB:.0f} GiB" in small.line()


def test_a_lora_target_that_the_network_does_not_have_is_named() -> None:
    with pytest.raises(UserError, match="to_qq"):
        of("stabilityai/stable-diffusion-3.5-medium", LORA.model_copy(update={"targets": ("to_qq",)}))


def test_sides_of_layers() -> None:
    from mmrl.generative.footprint import _sides

    for layer in (nn.Linear(3, 5), nn.Conv2d(3, 5, 3)):
        holder = nn.Sequential(layer)
        lora.add(holder, 2, 2, ["0"], 0)
        assert sum(p.numel() for p in holder.parameters() if p.requires_grad) == 2 * _sides(layer)
        assert all(isinstance(p, torch.Tensor) for p in holder.parameters())
