"""Qwen-Image: an MM-DiT that is told sigma, a Qwen2.5-VL, the video VAE of Wan for one frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mmrl.generative.conditioning import Tensors
from mmrl.generative.families.base import Adapter, channel_statistics
from mmrl.generative.families.loaded import Loaded
from mmrl.generative.flow import FlowPolicy
from mmrl.generative.packing import pack_latents, unpack_latents

Shape = tuple[int, int, int]
"""Frames, rows and columns of the packed tokens of a picture."""


class QwenImageAdapter(Adapter):
    """2x2 latents are one token; a guided output has the length of the positive one, token by token."""

    pipeline = "QwenImagePipeline"
    network_name = "transformer"
    encoder_names = ("text_encoder",)
    lora_targets = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        *("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
    )

    def __init__(self, pipe: Any, dtype: torch.dtype, device: torch.device, max_sequence_length: int = 512) -> None:
        super().__init__(pipe, dtype, device)
        self.max_sequence_length = max_sequence_length

    @property
    def default_size(self) -> int:
        return int(self.pipe.default_sample_size * self.vae_scale)

    @property
    def size_unit(self) -> int:
        return 2 * self.vae_scale

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.z_dim)

    def sigmas(self, num_steps: int) -> list[float] | None:
        found: list[float] = np.linspace(1.0, 1 / num_steps, num_steps).tolist()
        return found

    def encode_texts(self, texts: list[str]) -> Tensors:
        prompt, mask = self.pipe.encode_prompt(texts, device=self.device, max_sequence_length=self.max_sequence_length)
        return {"prompt": prompt, "prompt_mask": full(prompt, mask)}

    def predict(self, x: Tensor, timestep: Tensor, cond: Tensors) -> Tensor:
        return self.run(x, timestep, cond, None, [])

    def run(self, x: Tensor, timestep: Tensor, cond: Tensors, source: Tensor | None, shapes: Sequence[Shape]) -> Tensor:
        """The network's output for latents `x (B, C, h, w)` with the packed tokens `source (B, t, 4C)` of pictures of `shapes`
        behind them."""
        height, width = x.shape[2:]
        packed, own = pack_latents(x), (1, height // 2, width // 2)
        prompt, mask = trimmed(cond["prompt"], cond["prompt_mask"])
        out = self.network(
            hidden_states=self.cast(packed if source is None else torch.cat([packed, source.float()], 1)),
            timestep=self.cast(timestep) / 1000,
            encoder_hidden_states=self.cast(prompt),
            encoder_hidden_states_mask=mask,
            img_shapes=[[own, *shapes]] * len(x),
            return_dict=False,
        )[0]
        return unpack_latents(out[:, : packed.shape[1]].float(), height, width)

    def combine(self, negative: Tensor, positive: Tensor, scale: float, timestep: Tensor, cond: Tensors) -> Tensor:
        guided, own = pack_latents(negative + scale * (positive - negative)), pack_latents(positive)
        rescaled = guided * (own.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
        return unpack_latents(rescaled, *positive.shape[2:])

    def call_guidance(self, plan: Any) -> dict[str, Any]:
        told = {"true_cfg_scale": float(plan.guidance_scale)}
        return told | ({"negative_prompt": plan.negative_prompt} if plan.guidance_scale > 1 else {})

    def call_options(self) -> dict[str, Any]:
        return {"max_sequence_length": self.max_sequence_length}

    def to_vae(self, latents: Tensor) -> Tensor:
        mean, std = channel_statistics(self.vae, 5)
        return latents[:, :, None].float() * std + mean

    def from_vae(self, z: Tensor) -> Tensor:
        mean, std = channel_statistics(self.vae, 5)
        return ((z - mean) / std)[:, :, 0]

    def pixels(self, latents: Tensor) -> Tensor:
        return super().pixels(latents)[:, :, 0]

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        return super().encode_pixels(pixels[:, :, None])


def full(prompt: Tensor, mask: Tensor | None) -> Tensor:
    """The mask `(B, L)` bool of a pipeline that says None where all tokens count."""
    return torch.ones(prompt.shape[:2], dtype=torch.bool, device=prompt.device) if mask is None else mask.bool()


def trimmed(prompt: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Text `(B, L, D)` and its mask `(B, L)` without what no row has; no mask where all rows are as long."""
    longest = int(mask.sum(1).max())
    prompt, mask = prompt[:, :longest], mask[:, :longest]
    return prompt, None if bool(mask.all()) else mask


class QwenImage(Loaded, FlowPolicy):
    """Qwen/Qwen-Image, Qwen/Qwen-Image-2512: 1024x1024 by default, made for 1328x1328 and as many pixels in other shapes; 50 steps,
    guidance 4. Apache 2.0."""

    adapter_type: ClassVar[type[Adapter]] = QwenImageAdapter

    max_sequence_length: int = Field(default=512, ge=1, le=1024)
    """Text tokens of a prompt."""

    def adapter_options(self) -> dict[str, Any]:
        return {"max_sequence_length": self.max_sequence_length}
