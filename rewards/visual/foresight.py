"""Does a video go on as a world model foresees? Agreement of predicted with actual features under V-JEPA 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, layer_norm
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from mmrl.reward import Reward
from mmrl.rewards.preference.base import DTYPES, pretrained
from mmrl.rewards.preference.pixels import normalised
from mmrl.rollout import Sample
from mmrl.video import spread

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Foresight(Reward):
    """Mean cosine between the features of a video's later part and what V-JEPA 2 predicts for them from its first part alone.

    The first part is encoded by itself, so that nothing of the future leaks into the prediction. Source: the physical-foresight reward
    of MIND-V (its code of it is not published), on `VJEPA2Model`; features are layer-normalised, as those that V-JEPA 2 learned to
    predict.
    """

    range = (-1.0, 1.0)
    needs = ("video",)
    licence = "MIT (V-JEPA 2)"
    path: str = "facebook/vjepa2-vitl-fpc64-256"
    """Hub id or folder of the weights."""
    hub_revision: str | None = None
    """Branch, tag or commit of a hub id."""
    frames: int = Field(default=16, ge=4)
    """Frames that are looked at, evenly from first to last."""
    seen: float = Field(default=0.5, gt=0, lt=1)
    """Share of them that the model sees."""

    _model: Any = PrivateAttr(default=None)
    _device: Any = PrivateAttr(default=None)

    def setup(self, device: torch.device) -> None:
        """Load the model. Raises UserError when it is not there or does not fit."""
        from transformers import VJEPA2Model

        model = pretrained(VJEPA2Model, self.path, self.hub_revision, DTYPES["float32"])
        self._model, self._device = model.to(device).eval().requires_grad_(False), device

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """One number per sample. Raises ValueError for a video with fewer frames than are looked at."""
        return [self._score(sample) for sample in samples]

    @torch.inference_mode()
    def _score(self, sample: Sample) -> float:
        assert sample.video is not None
        if len(sample.video) < self.frames:
            raise ValueError(f"the video has {len(sample.video)} frames, and foresight looks at {self.frames}")
        clip = np.stack([sample.video[k] for k in spread(len(sample.video), self.frames)])
        pixels = prepared(torch.from_numpy(clip).to(self._device), int(self._model.config.crop_size))
        return float(agreement(self._model, pixels[None], self.seen))


def prepared(frames: Tensor, size: int) -> Tensor:
    """Uint8 frames `(T, H, W, 3)` as V-JEPA 2 takes them, `(T, 3, size, size)`: shortest side to 256/224 of `size` (bilinear), centre
    crop, normalised."""
    pixels = frames.permute(0, 3, 1, 2).float() / 255
    small = F.resize(pixels, [int(size * 256 / 224)], interpolation=InterpolationMode.BILINEAR, antialias=True)
    return normalised(F.center_crop(small, [size, size]), IMAGENET_MEAN, IMAGENET_STD)


def agreement(model: nn.Module, pixels: Tensor, seen: float) -> Tensor:
    """Mean cosine `(B,)` over the later tokens of `pixels (B, T, 3, S, S)`; T is cut into tubes of `tubelet_size` frames.

    Raises ValueError where the seen or the foreseen part would be empty."""
    own: Any = model
    tube = int(own.config.tubelet_size)
    tubes = pixels.shape[1] // tube
    first = max(1, round(seen * tubes))
    if first >= tubes:
        raise ValueError(f"{pixels.shape[1]} frames are {tubes} tubes of {tube}; there must be one to foresee")
    actual = own.encoder(pixel_values_videos=pixels[:, : tubes * tube]).last_hidden_state
    context = own.encoder(pixel_values_videos=pixels[:, : first * tube]).last_hidden_state
    total, known = actual.shape[1], context.shape[1]
    places = torch.arange(total, device=pixels.device).expand(len(pixels), -1)
    predicted = own.predictor(
        encoder_hidden_states=context, context_mask=[places[:, :known]], target_mask=[places[:, known:]]
    ).last_hidden_state
    return cosine_similarity(predicted, layer_norm(actual[:, known:], actual.shape[-1:]), dim=-1).mean(1)
