"""ImageReward through transformers' Blip classes: a text encoder that looks at the picture, and a head on its first token."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import PrivateAttr
from torch import Tensor, nn

from mmrl.errors import UserError
from mmrl.rewards.preference.base import DTYPES, PictureModel, ScoreHead, file_of, fill, tensors
from mmrl.rewards.preference.pixels import clip_batch, floats

MEAN, STD = 0.16717362830052426, 1.0333394966054072
TEXT_TOKENS = 35
DROPPED = ("vision_proj.", "text_proj.", "position_ids")
VISION_NAMES = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"\.attn\.qkv\.", ".self_attn.qkv."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"^norm\.", "post_layernorm."),
)
"""Names of the published file -> names in `BlipVisionModel`; the text encoder's are the same."""


class ImageRewardModel(nn.Module):
    """`vision` (BlipVisionModel), `text` (BlipTextModel with cross attention) and `head`."""

    def __init__(self, vision: Any, text: Any) -> None:
        super().__init__()
        self.vision, self.text = vision, text
        self.head = ScoreHead(text.config.hidden_size)

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Unnormalised scores `(B,)`."""
        seen = self.vision(pixel_values=pixels).last_hidden_state
        # encoder attention: the causal path of the class gives other numbers, and is_decoder=True in the config only serves
        # to build the cross attention
        out = self.text(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=seen.new_ones(seen.shape[:2]).long(),
            is_decoder=False,
        )
        return self.head(out.last_hidden_state[:, 0].float())


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published state dict under the names of `ImageRewardModel`. Raises UserError for a name of no known part."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        own = name.removeprefix("blip.")
        if own.startswith(DROPPED[:2]) or own.endswith(DROPPED[2]):
            continue
        if own.startswith("visual_encoder."):
            own = own.removeprefix("visual_encoder.")
            for pattern, new in VISION_NAMES:
                own = re.sub(pattern, new, own)
            found[f"vision.{own}"] = value
        elif own.startswith("text_encoder."):
            found[f"text.{own.removeprefix('text_encoder.')}"] = value
        elif own.startswith("mlp."):
            found[f"head.{own.removeprefix('mlp.')}"] = value
        else:
            raise UserError(f"ImageReward weights: unknown name '{name}'")
    return found


def build(text_config: Mapping[str, Any], **vision: Any) -> ImageRewardModel:
    """An untrained model; by default the sizes of the published one.

    `encoder_width` of the config is not read: the published `med_config.json` says 768, that of BLIP's base picture encoder, and
    the original overwrites it with the width of the encoder it builds (1024)."""
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    sizes: dict[str, Any] = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 16,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
    } | vision
    own = {key: value for key, value in text_config.items() if key != "encoder_width"}
    text = BlipTextConfig(**{**own, "encoder_hidden_size": sizes["hidden_size"], "is_decoder": True})
    return ImageRewardModel(BlipVisionModel(BlipVisionConfig(**sizes)), BlipTextModel(text, add_pooling_layer=False))


class ImageReward(PictureModel):
    """ImageReward: how well a picture fits its prompt and people's taste, about -2.3 to 2.

    Source: Xu et al. 2023 (arXiv 2304.05977); `path` holds `ImageReward.pt` and `med_config.json`.
    """

    differentiable = True
    licence = "Apache-2.0"
    path: str = "THUDM/ImageReward"
    tokenizer: str = "google-bert/bert-base-uncased"
    """Hub id or folder of the tokenizer."""

    _tokenizer: Any = PrivateAttr(default=None)

    def load(self) -> nn.Module:
        config = json.loads(Path(file_of(self.path, "med_config.json", self.hub_revision)).read_text(encoding="utf-8"))
        file = file_of(self.path, "ImageReward.pt", self.hub_revision)
        model = build(config, **self.vision_sizes())
        fill(model, renamed(tensors(file)), file, allowed=("position_ids",))
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
        model.to(DTYPES[self.dtype]).head.float()
        return model

    def vision_sizes(self) -> dict[str, Any]:
        """What differs from the published picture encoder."""
        return {}

    def rate(self, pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> Tensor:
        return self._rate(floats(pictures, self._device), prompts)

    def score_tensor(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores `(B,)` of pictures `(B, 3, H, W)` in [0, 1], with gradient."""
        return self._rate(list(images), prompts)

    def _rate(self, pictures: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        tokens = self._tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=TEXT_TOKENS, return_tensors="pt"
        ).to(self._device)
        pixels = clip_batch(pictures, self._model.vision.config.image_size).to(DTYPES[self.dtype])
        return (self._model(pixels, tokens["input_ids"], tokens["attention_mask"]) - MEAN) / STD
