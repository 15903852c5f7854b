"""LTX-Video: a transformer with cross-attention to a masked T5 that is told 1000 sigma and the frame rate; a VAE of 32x32 pixels and 8 frames per latent."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mmrl.errors import UserError
from mmrl.generative.conditioning import Size, Tensors
from mmrl.generative.families.base import Adapter
from mmrl.generative.families.loaded import Loaded
from mmrl.generative.flow import FlowPolicy


class LTXAdapter(Adapter):
    """A VAE that is told a timestep gets `decode_timestep` and, unlike the pipeline's default, latents without new noise."""

    pipeline = "LTXPipeline"
    network_name = "transformer"
    encoder_names = ("text_encoder",)
    lora_targets = tuple(
        f"{attn}.{layer}" for attn in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0")
    )
    makes = "video"
    default_frames = 161
    default_fps = 25
    default_sides = (512, 704)
    noise_dtype = torch.float32

    def __init__(
        self,
        pipe: Any,
        dtype: torch.dtype,
        device: torch.device,
        max_sequence_length: int = 128,
        decode_timestep: float = 0.0,
    ) -> None:
        if any(pipe.vae.config.decoder_inject_noise):
            raise UserError(
                "the VAE of this checkpoint draws noise while it decodes (decoder_inject_noise, LTX-Video 0.9.1), so that one "
                "latent gives many videos, which is not supported; take Lightricks/LTX-Video or Lightricks/LTX-Video-0.9.5"
            )
        super().__init__(pipe, dtype, device)
        self.max_sequence_length = max_sequence_length
        self.decode_timestep = decode_timestep

    @property
    def vae_scale(self) -> int:
        return int(self.pipe.vae_spatial_compression_ratio)

    @property
    def size_unit(self) -> int:
        return self.vae_scale * int(self.network.config.patch_size)

    @property
    def frame_unit(self) -> int:
        return int(self.pipe.vae_temporal_compression_ratio)

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    def tokens(self, size: Size) -> int:
        _, frames, height, width = self.latent_shape(size)
        return frames * height * width

    def sigmas(self, num_steps: int) -> list[float] | None:
        found: list[float] = np.linspace(1.0, 1 / num_steps, num_steps).tolist()
        return found

    def facts(self, plan: Any, rows: int) -> Tensors:
        return {"frame_rate": torch.full((rows,), float(plan.fps or self.default_fps), device=self.device)}

    def encode_texts(self, texts: list[str]) -> Tensors:
        prompt, mask, _, _ = self.pipe.encode_prompt(
            texts,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
            device=self.device,
        )
        return {"prompt": prompt, "prompt_mask": mask}

    def predict(self, x: Tensor, timestep: Tensor, cond: Tensors) -> Tensor:
        sides = x.shape[2:]
        patch = (self.pipe.transformer_spatial_patch_size, self.pipe.transformer_temporal_patch_size)
        seconds = self.frame_unit / cond["frame_rate"]
        out = self.network(
            hidden_states=self.cast(self.pipe._pack_latents(x, *patch)),
            encoder_hidden_states=self.cast(cond["prompt"]),
            timestep=timestep,
            encoder_attention_mask=cond["prompt_mask"],
            num_frames=sides[0],
            height=sides[1],
            width=sides[2],
            rope_interpolation_scale=(seconds[:, None, None, None, None], self.vae_scale, self.vae_scale),
            return_dict=False,
        )[0].float()
        unpacked: Tensor = self.pipe._unpack_latents(out, *sides, *patch)
        return unpacked

    def to_vae(self, latents: Tensor) -> Tensor:
        mean, std, scale = self._statistics()
        return latents.float() * std / scale + mean

    def from_vae(self, z: Tensor) -> Tensor:
        mean, std, scale = self._statistics()
        return (z - mean) * scale / std

    def pixels(self, latents: Tensor) -> Tensor:
        timestep = None
        if self.vae.config.timestep_conditioning:
            timestep = torch.full((len(latents),), self.decode_timestep, device=latents.device)
        return (self.vae.decode(self.to_vae(latents), timestep, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)

    def call_guidance(self, plan: Any) -> dict[str, Any]:
        return {**super().call_guidance(plan), "frame_rate": plan.fps or self.default_fps}

    def call_options(self) -> dict[str, Any]:
        told: dict[str, Any] = {"max_sequence_length": self.max_sequence_length}
        if self.vae.config.timestep_conditioning:
            told |= {"decode_timestep": self.decode_timestep, "decode_noise_scale": 0.0}
        return told

    def _statistics(self) -> tuple[Tensor, Tensor, float]:
        """Mean and standard deviation of the VAE's latents per channel, `(1, C, 1, 1, 1)`, and its scale."""
        mean, std = (value.float().reshape(1, -1, 1, 1, 1) for value in (self.vae.latents_mean, self.vae.latents_std))
        return mean, std, float(self.vae.config.scaling_factor)


class LTX(Loaded, FlowPolicy):
    """LTX-Video text-to-video: Lightricks/LTX-Video (512x704, 161 frames of 25 per second, 50 steps, guidance 3),
    Lightricks/LTX-Video-0.9.5 (its VAE is told a timestep). LTX-Video Open Weights License. The VAE of 0.9.1 draws noise and is refused.

    The frame rate (`fps` of the plan) is told to the network.
    """

    adapter_type: ClassVar[type[Adapter]] = LTXAdapter

    max_sequence_length: int = Field(default=128, ge=1)
    """T5 tokens of a prompt."""
    decode_timestep: float = Field(default=0.0, ge=0, le=1)
    """What a VAE with `timestep_conditioning` is told; recommended with 0.9.5: 0.05."""

    def adapter_options(self) -> dict[str, Any]:
        return {"max_sequence_length": self.max_sequence_length, "decode_timestep": self.decode_timestep}
