"""Heads and encoders of preference models against numbers of the original implementations."""

from __future__ import annotations

import json
import re
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmrl.rewards.preference.base import ScoreHead, fill
from mmrl.rewards.preference.image_reward import MEAN, STD, build, renamed

CASES = json.loads((Path(__file__).parent / "data" / "aesthetic_imagereward.json").read_text())["cases"]
BACK = (
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^encoder\.layers\.", "blocks."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.self_attn\.qkv\.", ".attn.qkv."),
    (r"\.self_attn\.projection\.", ".attn.proj."),
    (r"^post_layernorm\.", "norm."),
)


def code(shape: tuple[int, ...], j: int) -> Tensor:
    """The fill rule of the file, in exact integers."""
    values = [((31 * k * k + 7919 * k + 104729 * j + 12345) % 65521) / 65521 - 0.5 for k in range(prod(shape))]
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


def data(shape: tuple[int, ...], j: int, s: float) -> Tensor:
    return (2 * s * code(shape, j)).float()


def filled(shapes: dict[str, tuple[int, ...]], scale: float, norm: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Weights by name: parameter j is the j-th of the sorted names; 1 is added to the weights of layer norms."""
    found = {}
    for j, name in enumerate(sorted(shapes)):
        value = (2 * scale * code(shapes[name], j)).float()
        found[name] = value + 1 if name.endswith("weight") and any(part in name for part in norm) else value
    return found


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@pytest.mark.parametrize(("number", "key", "seed"), [(0, "score", 1001), (1, "raw", 1002)])
def test_the_heads(number: int, key: str, seed: int) -> None:
    head = ScoreHead(768).eval()
    fill(head, filled(shapes_of(head), CASES[number]["params"]["scale"]), "golden")
    x = data((3, 768), seed, 1)
    found = head(x / x.norm(dim=1, keepdim=True) if number == 0 else x)
    torch.testing.assert_close(found, torch.tensor(CASES[number]["outputs"][key]), rtol=1e-5, atol=1e-5)
    if number == 1:
        wanted = torch.tensor(CASES[1]["outputs"]["reward"])
        torch.testing.assert_close((found - MEAN) / STD, wanted, rtol=1e-5, atol=1e-5)


def test_the_encoders_of_imagereward_under_their_published_names() -> None:
    case = CASES[2]
    sizes, text = case["params"]["vision"], dict(case["params"]["text"])
    model = build(
        text,
        hidden_size=sizes["embed_dim"],
        intermediate_size=sizes["embed_dim"] * sizes["mlp_ratio"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["num_heads"],
        image_size=sizes["img_size"],
    ).eval()
    vision = {published(name): tuple(value.shape) for name, value in model.vision.state_dict().items()}
    words = shapes_of(model.text) | {"embeddings.position_ids": (1, text["max_position_embeddings"])}
    scale = case["params"]["scale"]
    state: dict[str, Any] = {
        f"blip.visual_encoder.{k}": v for k, v in filled(vision, scale, ("norm1.", "norm2.", "norm.")).items()
    }
    state |= {f"blip.text_encoder.{k}": v for k, v in filled(words, scale, ("LayerNorm",)).items()}
    state |= {f"mlp.{k}": v for k, v in model.head.state_dict().items()}
    state |= {"blip.vision_proj.weight": torch.zeros(1), "blip.text_proj.bias": torch.zeros(1)}
    fill(model, renamed(state), "golden")
    ids = torch.tensor(case["params"]["input_ids"])
    pixels = data((2, 3, 32, 32), 1004, 0.9)
    seen = model.vision(pixel_values=pixels).last_hidden_state
    out = model.text(
        input_ids=ids,
        attention_mask=(ids != 0).long(),
        encoder_hidden_states=seen,
        encoder_attention_mask=torch.ones(seen.shape[:2]).long(),
        is_decoder=False,
    ).last_hidden_state[:, 0]
    wanted = case["outputs"]
    torch.testing.assert_close(seen[:, 0], torch.tensor(wanted["vision_cls"]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out, torch.tensor(wanted["text_cls"]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(pixels, ids, (ids != 0).long()), model.head(out))


def published(name: str) -> str:
    for pattern, new in BACK:
        name = re.sub(pattern, new, name)
    return name
