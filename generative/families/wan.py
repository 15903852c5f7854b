"""Wan 2.1 and 2.2: a video transformer that is told 1000 sigma, one UMT5, a causal video VAE. Wan 2.2 has an expert for high and one for
low noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from mmrl.errors import UserError
from mmrl.generative.conditioning import Ask, Tensors
from mmrl.generative.families.base import Adapter, channel_statistics
from mmrl.generative.families.loaded import Loaded
from mmrl.generative.flow import FlowPolicy
from mmrl.generative.plan import FlowPlan, FlowSampling
from mmrl.generative.transition import expand


class WanAdapter(Adapter):
    """A row goes through `transformer` from `boundary_ratio` of the timesteps on, through `transformer_2` below, where there is one.

    The noise is that of float32 whatever the dtype. The text is padded with zeros, which the network does see.
    """

    pipeline = "WanPipeline"
    network_name = "transformer"
    expert_names = ("transformer_2",)
    encoder_names = ("text_encoder",)
    lora_targets = (
        *(f"{attn}.{layer}" for attn in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0")),
        *("ffn.net.0.proj", "ffn.net.2"),
    )
    makes = "video"

    def __init__(self, pipe: Any, dtype: torch.dtype, device: torch.device, max_sequence_length: int = 512) -> None:
        for name in (self.network_name, *(self.expert_names if pipe.config.boundary_ratio is not None else ())):
            if getattr(pipe, name) is None:
                raise UserError(f"this checkpoint has no {name}, which its boundary_ratio asks for")
        super().__init__(pipe, dtype, device)
        self.max_sequence_length = max_sequence_length
        five_billion = bool(pipe.config.expand_timesteps)  # the small model of Wan 2.2, made for 24 frames per second
        self.default_frames, self.default_fps = (121, 24) if five_billion else (81, 16)

    @property
    def default_sides(self) -> tuple[int, int]:
        return (704, 1280) if self.pipe.config.expand_timesteps else (480, 832)

    @property
    def size_unit(self) -> int:
        return self.vae_scale * int(self.network.config.patch_size[1])

    @property
    def noise_dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.z_dim)

    def facts(self, plan: Any, rows: int) -> Tensors:
        """Raises UserError for a guidance of the second expert where there is none."""
        second = plan.guidance_scale_2
        if second is None:
            return {}
        if len(self.networks) == 1:
            raise UserError(f"guidance_scale_2 is {second:g}, but this checkpoint has no second expert; leave it out")
        return {"guidance_2": torch.full((rows,), float(second), device=self.device)}

    def encode_texts(self, texts: list[str]) -> Tensors:
        prompt, _ = self.pipe.encode_prompt(
            texts,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
            device=self.device,
        )
        return {"prompt": prompt}

    def predict(self, x: Tensor, timestep: Tensor, cond: Tensors) -> Tensor:
        high = self._high(timestep)
        if bool(high.all()):
            return self._run(self.network, x, timestep, cond)
        low_noise = self.pipe.transformer_2
        if not bool(high.any()):
            return self._run(low_noise, x, timestep, cond)
        rows = high.nonzero()[:, 0], (~high).nonzero()[:, 0]
        parts = [
            self._run(network, x[at], timestep[at], {name: value[at] for name, value in cond.items()})
            for network, at in zip((self.network, low_noise), rows, strict=True)
        ]
        return torch.cat(parts)[torch.cat(rows).argsort()]

    def combine(self, negative: Tensor, positive: Tensor, scale: float, timestep: Tensor, cond: Tensors) -> Tensor:
        scales: Tensor | float = scale
        if "guidance_2" in cond:
            scales = torch.where(self._high(timestep), scale, cond["guidance_2"])
        return negative + expand(scales, positive) * (positive - negative)

    def to_vae(self, latents: Tensor) -> Tensor:
        mean, std = channel_statistics(self.vae, 5)
        return latents.float() * std + mean

    def from_vae(self, z: Tensor) -> Tensor:
        mean, std = channel_statistics(self.vae, 5)
        return (z - mean) / std

    def call_options(self) -> dict[str, Any]:
        return {"max_sequence_length": self.max_sequence_length}

    def _high(self, timestep: Tensor) -> Tensor:
        """Which rows `(B,)` bool the first expert denoises."""
        ratio = self.pipe.config.boundary_ratio
        return timestep >= (0.0 if ratio is None else ratio * self.pipe.scheduler.config.num_train_timesteps)

    def _run(self, network: Any, x: Tensor, timestep: Tensor, cond: Tensors) -> Tensor:
        # the pipeline tells a model with `expand_timesteps` one timestep per token, here all of them the same
        return network(
            hidden_states=self.cast(x),
            timestep=timestep,
            encoder_hidden_states=self.cast(cond["prompt"]),
            return_dict=False,
        )[0].float()


class WanImageAdapter(WanAdapter):
    """The first frame is given: its latents, behind a mask of frames, stand beside the noise as channels; Wan 2.1 also sees it through CLIP."""

    pipeline = "WanImageToVideoPipeline"
    media_role = "first_frame"

    def __init__(self, pipe: Any, dtype: torch.dtype, device: torch.device, max_sequence_length: int = 512) -> None:
        if pipe.config.expand_timesteps:
            raise UserError(
                "image-to-video of a model with expand_timesteps (Wan 2.2 TI2V 5B) is not supported: it replaces the first latent frame "
                "at every step; load it as policy 'wan' for text-to-video"
            )
        super().__init__(pipe, dtype, device, max_sequence_length)

    def frozen_parts(self) -> list[Any]:
        return [] if self.pipe.image_encoder is None else [self.pipe.image_encoder]

    @torch.no_grad()
    def encode_media(self, asks: Sequence[Ask]) -> Tensors:
        """`condition (B, 4 + C, t, h, w)` float32 and, where the network takes it, `image (B, tokens, width)`."""
        found: list[Tensors] = []
        for ask in asks:
            if len(ask.media) != 1 or ask.size is None:
                raise UserError(f"this model takes 1 picture, the first frame, but the prompt has {len(ask.media)}")
            picture = Image.fromarray(ask.media[0].array)
            height, width, frames = ask.size
            pixels = self.pipe.video_processor.preprocess(picture, height=height, width=width).to(self.device)
            unused = torch.zeros(1, device=self.device)  # in the place of noise, which it would draw
            made = self.pipe.prepare_latents(
                pixels, 1, self.latent_channels, height, width, frames, torch.float32, self.device, latents=unused
            )
            one = {"condition": made[1]}
            if self.network.config.image_dim is not None:
                one["image"] = self.pipe.encode_image(picture, self.device)
            found.append(one)
        return {name: torch.cat([one[name] for one in found]) for name in found[0]}

    def _run(self, network: Any, x: Tensor, timestep: Tensor, cond: Tensors) -> Tensor:
        return network(
            hidden_states=self.cast(torch.cat([x, cond["condition"]], 1)),
            timestep=timestep,
            encoder_hidden_states=self.cast(cond["prompt"]),
            encoder_hidden_states_image=self.cast(cond["image"]) if "image" in cond else None,
            return_dict=False,
        )[0].float()


class WanSampling(FlowSampling):
    """Sampling of Wan, whose two experts may have guidance scales of their own."""

    guidance_scale_2: float | None = Field(default=None, ge=1)
    """Guidance of the expert for low noise; default: `guidance_scale`, which must be above 1 for any guidance."""

    @model_validator(mode="after")
    def _guided(self) -> WanSampling:
        if self.guidance_scale_2 is not None and self.guidance_scale == 1:
            raise ValueError(
                f"guidance_scale_2 is {self.guidance_scale_2:g}, but guidance_scale 1 means no guidance at any step; "
                "set guidance_scale above 1 or leave guidance_scale_2 out"
            )
        return self


class WanPlan(FlowPlan, WanSampling):
    """Rollout of Wan."""


class Wan(Loaded, FlowPolicy):
    """Wan text-to-video: Wan-AI/Wan2.1-T2V-1.3B-Diffusers, Wan-AI/Wan2.1-T2V-14B-Diffusers (480x832 or 720x1280, 81 frames, 50 steps,
    guidance 5), Wan-AI/Wan2.2-T2V-A14B-Diffusers (two experts; 40 steps, guidance 4 and 3), Wan-AI/Wan2.2-TI2V-5B-Diffusers (704x1280,
    121 frames, 50 steps, guidance 5). Apache 2.0.

    They come with UniPC; mmrl takes first-order steps on the same sigmas. A LoRA is put on both experts.
    """

    adapter_type: ClassVar[type[Adapter]] = WanAdapter
    plan_type: ClassVar[type[BaseModel]] = WanPlan
    sampling_type: ClassVar[type[BaseModel]] = WanSampling

    max_sequence_length: int = Field(default=512, ge=1)
    """Text tokens, shorter prompts being padded."""

    def adapter_options(self) -> dict[str, Any]:
        return {"max_sequence_length": self.max_sequence_length}


class WanImage(Wan):
    """Wan image-to-video, the one picture of a prompt being the first frame: Wan-AI/Wan2.1-I2V-14B-480P-Diffusers,
    Wan-AI/Wan2.1-I2V-14B-720P-Diffusers (81 frames, 50 steps, guidance 5), Wan-AI/Wan2.2-I2V-A14B-Diffusers (two experts, 40 steps,
    guidance 3.5). Apache 2.0."""

    adapter_type: ClassVar[type[Adapter]] = WanImageAdapter
