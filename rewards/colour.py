"""How close a picture is to one colour, with a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from mmrl.reward import Reward, rgb
from mmrl.rollout import Sample

Share = Annotated[float, Field(ge=0, le=1)]


def closeness(images: Tensor, colour: Sequence[float]) -> Tensor:
    """`1 - mean (pixel - colour)^2` `(B,)` of pictures `(B, 3, H, W)` in [0, 1]."""
    wanted = torch.tensor(list(colour), dtype=images.dtype, device=images.device)[:, None, None]
    return 1 - (images - wanted).square().flatten(1).mean(1)


class Colour(Reward):
    """1 for a picture of one colour all over, less the further its pixels are from it (a check of reward gradients)."""

    range = (0.0, 1.0)
    needs = ("image",)
    differentiable = True
    licence = "Apache-2.0"

    colour: tuple[Share, Share, Share]
    """Red, green and blue, 0 to 1."""

    def score(self, samples: Sequence[Sample]) -> list[float]:
        pictures = (torch.tensor(rgb(sample.images[0])).permute(2, 0, 1)[None].float() / 255 for sample in samples)
        return [float(closeness(one, self.colour)) for one in pictures]

    def score_tensor(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return closeness(images, self.colour)
