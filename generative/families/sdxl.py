"""Stable Diffusion XL: a UNet that predicts epsilon or v and is told sizes, two CLIPs, a VAE with 4 channels; DDIM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmrl.generative.conditioning import Ask, Tensors
from mmrl.generative.diffusion import DiffusionPolicy
from mmrl.generative.families.base import Adapter
from mmrl.generative.families.loaded import Loaded
from mmrl.generative.families.sd15 import SD15Adapter


class SDXLAdapter(SD15Adapter):
    """The UNet is told the size of the picture as original and target size, uncropped."""

    pipeline = "StableDiffusionXLPipeline"
    encoder_names = ("text_encoder", "text_encoder_2")

    def encode_texts(self, texts: list[str]) -> Tensors:
        prompt, _, pooled, _ = self.pipe.encode_prompt(
            texts, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"prompt": prompt, "pooled": pooled}

    def encode(self, asks: Sequence[Ask]) -> Tensors:
        """Where the checkpoint says so, no text at all is zeros instead of what the encoders make of nothing."""
        found = super().encode(asks)
        if not self.pipe.config.force_zeros_for_empty_prompt:
            return found
        empty = torch.tensor([ask.bare and not ask.text for ask in asks], device=self.device)
        return {
            name: value.masked_fill(empty.reshape(-1, *[1] * (value.dim() - 1)), 0.0) for name, value in found.items()
        }

    def predict(self, x: Tensor, timestep: Tensor, cond: Tensors) -> Tensor:
        height, width = (side * self.vae_scale for side in x.shape[-2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], device=x.device).expand(len(x), -1)
        added = {"text_embeds": self.cast(cond["pooled"]), "time_ids": self.cast(sizes)}
        return self.network(
            self.cast(x),
            timestep,
            encoder_hidden_states=self.cast(cond["prompt"]),
            added_cond_kwargs=added,
            return_dict=False,
        )[0].float()


class SDXL(Loaded, DiffusionPolicy):
    """Stable Diffusion XL (stabilityai/stable-diffusion-xl-base-1.0; OpenRAIL++-M): `path` is a diffusers folder or hub id. 1024 pixels, guidance 5.

    Its Euler scheduler is replaced by a DDIMScheduler on the same betas, which is saved and exported with the model.
    """

    adapter_type: ClassVar[type[Adapter]] = SDXLAdapter

    def read_options(self) -> dict[str, Any]:
        return {"add_watermarker": False}
