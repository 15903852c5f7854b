"""Similarity of picture and text under a CLIP: CLIPScore and PickScore (transformers), CLIPScore and HPS (open_clip)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import PrivateAttr
from torch import Tensor, nn
from torch.nn.functional import normalize

from mmrl.errors import UserError
from mmrl.rewards.preference.base import DTYPES, PictureModel, file_of, fill, pretrained, tensors
from mmrl.rewards.preference.pixels import Form, clip_batch, floats, form_of

TEXT_TOKENS = 77


class Similarity(PictureModel):
    """Base: features of both sides, and how their cosine becomes a score."""

    differentiable = True

    def picture_features(self, pictures: Sequence[Tensor]) -> Tensor:
        """Unit vectors `(B, D)` float32 of pictures `(3, H, W)` in [0, 1], with gradient where it is enabled."""
        raise NotImplementedError

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors `(B, D)` float32."""
        raise NotImplementedError

    def scaled(self, cosine: Tensor) -> Tensor:
        """The score of a cosine `(B,)`."""
        return cosine

    def cosine(self, pictures: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        """`(B,)` float32."""
        return (self.picture_features(pictures) * self.text_features(prompts)).sum(-1)

    def rate(self, pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> Tensor:
        return self.scaled(self.cosine(floats(pictures, self._device), prompts))

    def score_tensor(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores `(B,)` of pictures `(B, 3, H, W)` in [0, 1], with gradient."""
        return self.scaled(self.cosine(list(images), prompts))


class HfSimilarity(Similarity):
    """A `CLIPModel` of transformers, its tokenizer and `preprocessor_config.json` beside it."""

    processor: str | None = None
    """Hub id or folder of the tokenizer and `preprocessor_config.json`; default: where the weights are."""

    _tokenizer: Any = PrivateAttr(default=None)
    _form: Form = PrivateAttr(default=Form())
    _scale: float = PrivateAttr(default=1.0)

    def load(self) -> nn.Module:
        from transformers import AutoTokenizer, CLIPModel

        model = pretrained(CLIPModel, self.path, self.hub_revision, torch.float32, allowed=("position_ids",))
        beside, revision = (self.processor, None) if self.processor else (self.path, self.hub_revision)
        self._tokenizer = AutoTokenizer.from_pretrained(beside, revision=revision)
        self._form = form_of(beside, revision, model.config.vision_config.image_size)
        self._scale = model.logit_scale.exp().item()
        return model.to(DTYPES[self.dtype])

    def picture_features(self, pictures: Sequence[Tensor]) -> Tensor:
        pixels = clip_batch(pictures, self._model.config.vision_config.image_size, self._form)
        return _unit(self._model.get_image_features(pixel_values=pixels.to(self._model.dtype)))

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        tokens = self._tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self._longest, return_tensors="pt"
        ).to(self._device)
        return _unit(
            self._model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        )

    @property
    def _longest(self) -> int:
        return min(TEXT_TOKENS, int(self._model.config.text_config.max_position_embeddings))


class ClipScore(HfSimilarity):
    """CLIPScore: cosine of picture and prompt under CLIP (any `CLIPModel` checkpoint), about 0.15 to 0.4.

    `form: percent` is torchmetrics' `max(100 cos, 0)`. Source: Hessel et al. 2021 (arXiv 2104.08718), without its factor 2.5 and its
    "A photo depicts" before the prompt.
    """

    range = (-1.0, 100.0)
    licence = "MIT (openai/clip-vit-large-patch14)"
    path: str = "openai/clip-vit-large-patch14"
    form: Literal["cosine", "percent"] = "cosine"
    """`cosine`, or `percent`: max(100 cosine, 0)."""

    def limits(self) -> tuple[float | None, float | None]:
        return (-1.0, 1.0) if self.form == "cosine" else (0.0, 100.0)

    def scaled(self, cosine: Tensor) -> Tensor:
        return cosine if self.form == "cosine" else (100 * cosine).clamp_min(0)


class PickScore(HfSimilarity):
    """PickScore: `exp(logit_scale) cos` under a CLIP tuned on people's choices, about 18 to 25.

    `form: div26` divides by 26 (flow_grpo, verl-omni), `cosine` is the plain cosine (Pref-GRPO). Source: Kirstain et al. 2023 (arXiv
    2305.01569).
    """

    licence = "MIT"
    path: str = "yuvalkirstain/PickScore_v1"
    processor: str | None = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    form: Literal["raw", "div26", "cosine"] = "raw"
    """`raw`: the cosine times the model's logit scale; `div26`: that over 26; `cosine`: the plain cosine."""

    def scaled(self, cosine: Tensor) -> Tensor:
        if self.form == "cosine":
            return cosine
        raw = self._scale * cosine
        return raw / 26 if self.form == "div26" else raw


class OpenClipSimilarity(Similarity):
    """A model of open_clip, by its architecture and its weights (`path`: a file, or one of open_clip's pretrained tags)."""

    architecture: str = "ViT-H-14"
    """As open_clip calls it."""
    antialias: bool = True
    """False reproduces pictures that were shrunk without it (torchvision before 0.17)."""

    _tokenizer: Any = PrivateAttr(default=None)
    _form: Form = PrivateAttr(default=Form())

    def load(self) -> nn.Module:
        open_clip = _open_clip()
        if self.architecture not in open_clip.list_models():
            raise UserError(f"open_clip has no architecture '{self.architecture}'")
        model: Any = self.make(open_clip)
        self._tokenizer = open_clip.get_tokenizer(self.architecture)
        self._form = self.form(model.visual.preprocess_cfg)
        return model.to(DTYPES[self.dtype])

    def form(self, config: Mapping[str, Any]) -> Form:
        """How pictures are prepared, from what open_clip knows of the weights."""
        if config["interpolation"] not in ("bicubic", "bilinear") or config["resize_mode"] not in (
            "shortest",
            "squash",
        ):
            raise UserError(
                f"pictures for '{self.path}' are to be prepared with interpolation '{config['interpolation']}' and resize_mode "
                f"'{config['resize_mode']}'; there is: bicubic, bilinear; shortest, squash"
            )
        squash = config["resize_mode"] == "squash"
        return Form(config["mean"], config["std"], config["interpolation"], squash, self.antialias)

    def make(self, open_clip: Any) -> nn.Module:
        """The model with its weights."""
        tags = open_clip.list_pretrained_tags_by_model(self.architecture)
        if self.path not in tags:
            model = open_clip.create_model(self.architecture, pretrained=None)
            fill(model, tensors(self.path, "state_dict"), self.path, allowed=("attn_mask", "position_ids"))
            return model
        quick = bool(open_clip.get_pretrained_cfg(self.architecture, self.path).get("quick_gelu", False))
        if quick != bool(open_clip.get_model_config(self.architecture).get("quick_gelu", False)):
            plain = self.architecture.removesuffix("-quickgelu")
            raise UserError(
                f"the '{self.path}' weights of {self.architecture} were trained with another activation; use "
                f"architecture: {plain}{'-quickgelu' if quick else ''}"
            )
        return open_clip.create_model(self.architecture, pretrained=self.path)

    def picture_features(self, pictures: Sequence[Tensor]) -> Tensor:
        size = self._model.visual.image_size
        pixels = clip_batch(pictures, size if isinstance(size, int) else size[0], self._form)
        return _unit(self._model.encode_image(pixels.to(DTYPES[self.dtype])))

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        tokens = self._tokenizer(list(prompts), context_length=self._model.context_length).to(self._device)
        return _unit(self._model.encode_text(tokens))


class OpenClipScore(OpenClipSimilarity):
    """CLIPScore under a model of open_clip (extra `clip`): the cosine of picture and prompt."""

    licence = "that of the checkpoint"
    range = (-1.0, 1.0)
    path: str = "laion2b_s32b_b79k"


class Hps(OpenClipSimilarity):
    """HPSv2 and HPSv2.1: the cosine under a ViT-H-14 tuned on people's choices, about 0.2 to 0.35 (extra `clip`).

    The two versions are not comparable. Source: Wu et al. 2023 (arXiv 2306.09341); weights `HPS_v2.1_compressed.pt`.
    """

    range = (-1.0, 1.0)
    licence = "Apache-2.0"
    path: str = "xswu/HPSv2"
    version: Literal["v2.0", "v2.1"] = "v2.1"
    """Which weights of `path`; scores of the two do not compare."""

    def make(self, open_clip: Any) -> nn.Module:
        name = "HPS_v2.1_compressed.pt" if self.version == "v2.1" else "HPS_v2_compressed.pt"
        file = file_of(self.path, name, self.hub_revision)
        model = open_clip.create_model(self.architecture, pretrained=None)
        fill(model, tensors(file, "state_dict"), file, allowed=("attn_mask", "position_ids"))
        return model

    def form(self, config: Mapping[str, Any]) -> Form:
        """As the original, which resizes floats and does not clamp them."""
        return replace(super().form(config), clamp=False)


def _unit(output: Any) -> Tensor:
    """Unit vectors, float32, of what `get_image_features` and `get_text_features` return (an object since transformers 5)."""
    return normalize((output if isinstance(output, Tensor) else output.pooler_output).float(), dim=-1)


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise UserError("this reward needs open_clip: pip install 'mmrl[clip]'") from error
    assert inspect.ismodule(open_clip)
    return open_clip
