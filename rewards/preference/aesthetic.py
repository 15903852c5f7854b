"""The LAION aesthetic predictor: a small head on CLIP ViT-L/14 picture features; the prompt is not read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import PrivateAttr
from torch import Tensor, nn

from mmrl.rewards.preference.base import DTYPES, PictureModel, ScoreHead, file_of, fill, pretrained, tensors
from mmrl.rewards.preference.clip import _unit
from mmrl.rewards.preference.pixels import Form, clip_batch, floats, form_of


class Aesthetic(PictureModel):
    """LAION aesthetic score of the picture alone, about 1 to 10.

    Source: christophschuhmann/improved-aesthetic-predictor; `path` is the head's file, or a folder or hub id that holds `file`
    (the original: sac+logos+ava1-l14-linearMSE.pth).
    """

    differentiable = True
    licence = "Apache-2.0"
    path: str = "trl-lib/ddpo-aesthetic-predictor"
    file: str = "aesthetic-model.pth"
    """Name of the head's file in `path`."""
    clip: str = "openai/clip-vit-large-patch14"
    """Hub id or folder of the CLIP."""

    _clip: Any = PrivateAttr(default=None)
    _form: Form = PrivateAttr(default=Form())

    def load(self) -> nn.Module:
        from transformers import CLIPModel

        self._clip = pretrained(CLIPModel, self.clip, None, DTYPES[self.dtype], allowed=("position_ids",))
        self._form = form_of(self.clip, None, self._clip.config.vision_config.image_size)
        head = ScoreHead(self._clip.config.projection_dim)
        file = file_of(self.path, self.file, self.hub_revision)
        fill(head, tensors(file), file)
        return head

    def setup(self, device: torch.device) -> None:
        super().setup(device)
        self._clip = self._clip.to(device).eval().requires_grad_(False)

    def rate(self, pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> Tensor:
        return self._rate(floats(pictures, self._device))

    def score_tensor(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores `(B,)` of pictures `(B, 3, H, W)` in [0, 1], with gradient."""
        return self._rate(list(images))

    def _rate(self, pictures: Sequence[Tensor]) -> Tensor:
        pixels = clip_batch(pictures, self._clip.config.vision_config.image_size, self._form)
        return self._model(_unit(self._clip.get_image_features(pixel_values=pixels.to(self._clip.dtype))))
