"""CogVideoX: a transformer over text and video tokens that predicts v at integer timesteps, one T5; a video VAE that takes latent frames in pairs."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from mmrl.errors import UserError
from mmrl.generative.conditioning import Size, Tensors
from mmrl.generative.diffusion import DiffusionPolicy
from mmrl.generative.families.base import Adapter
from mmrl.generative.families.loaded import Loaded


class CogVideoXAdapter(Adapter):
    """Latents have their frames first, `(t, C, h, w)`. T5 tokens are padded to one length and all seen.

    A network whose patches span frames (CogVideoX 1.5) gets its latent frames filled up in front, with copies of the first where
    a video is encoded; what fills up is not decoded.
    """

    pipeline = "CogVideoXPipeline"
    network_name = "transformer"
    encoder_names = ("text_encoder",)
    lora_targets = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")
    makes = "video"

    def __init__(self, pipe: Any, dtype: torch.dtype, device: torch.device) -> None:
        if pipe.transformer.config.patch_size_t not in (None, 2):
            raise UserError(
                f"patches of {pipe.transformer.config.patch_size_t} latent frames are not supported; expected none or 2"
            )
        super().__init__(pipe, dtype, device)
        self.default_frames, self.default_fps = (81, 16) if self.filled else (int(self.network.config.sample_frames), 8)

    @classmethod
    def read(cls, path: str, dtype: str, revision: str | None = None, **options: Any) -> Any:
        """As `Adapter.read`, with CogVideoXDDIMScheduler on the same betas in the place of CogVideoXDPMScheduler."""
        from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

        pipe = super().read(path, dtype, revision, **options)
        if isinstance(pipe.scheduler, CogVideoXDPMScheduler):
            pipe.scheduler = CogVideoXDDIMScheduler.from_config(pipe.scheduler.config)  # type: ignore[attr-defined]
        return pipe

    @property
    def default_sides(self) -> tuple[int, int]:
        config = self.network.config
        made_for = config.sample_height * self.vae_scale, config.sample_width * self.vae_scale
        return (768, 1360) if self.filled else made_for

    @property
    def size_unit(self) -> int:
        return self.vae_scale * int(self.network.config.patch_size)

    @property
    def size_limit(self) -> int | None:
        """Of the table of positions that 1.5 cuts from."""
        config = self.network.config
        return min(config.sample_height, config.sample_width) * self.vae_scale if self.filled else None

    @property
    def frame_unit(self) -> int:
        """Twice what one latent frame holds: only an odd number of latent frames decodes to as many frames as were asked for."""
        return 2 * super().frame_unit

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        frames = (size.frames - 1) // super().frame_unit + 1
        height, width = size.height // self.vae_scale, size.width // self.vae_scale
        return (frames + self.filled, self.latent_channels, height, width)

    @property
    def filled(self) -> int:
        """Latent frames in front that are not decoded."""
        return 0 if self.network.config.patch_size_t is None else 1

    def encode_texts(self, texts: list[str]) -> Tensors:
        prompt, _ = self.pipe.encode_prompt(
            texts,
            do_classifier_free_guidance=False,
            **self.call_options(),
            device=self.device,
        )
        return {"prompt": prompt}

    def predict(self, x: Tensor, timestep: Tensor, cond: Tensors) -> Tensor:
        _, frames, _, height, width = x.shape
        rope = None
        if self.network.config.use_rotary_positional_embeddings:
            sides = height * self.vae_scale, width * self.vae_scale
            rope = self.pipe._prepare_rotary_positional_embeddings(*sides, frames, x.device)
        return self.network(
            hidden_states=self.cast(x),
            encoder_hidden_states=self.cast(cond["prompt"]),
            timestep=timestep,
            image_rotary_emb=rope,
            return_dict=False,
        )[0].float()

    def to_vae(self, latents: Tensor) -> Tensor:
        return super().to_vae(latents[:, self.filled :].movedim(1, 2))

    def from_vae(self, z: Tensor) -> Tensor:
        latents = super().from_vae(z).movedim(2, 1)
        return torch.cat([latents[:, :1]] * self.filled + [latents], 1)

    def call_options(self) -> dict[str, Any]:
        return {"max_sequence_length": int(self.network.config.max_text_seq_length)}


class CogVideoX(Loaded, DiffusionPolicy):
    """CogVideoX text-to-video with DDIM: THUDM/CogVideoX-2b (Apache 2.0), THUDM/CogVideoX-5b (480x720, 49 frames of 8 per second, 50 steps,
    guidance 6), THUDM/CogVideoX1.5-5B (768x1360, 81 frames of 16 per second); the 5B models have the CogVideoX licence.

    A checkpoint that comes with CogVideoXDPMScheduler gets a CogVideoXDDIMScheduler of the same settings, which is saved and exported
    with the model. Guidance is the same at every step (`use_dynamic_cfg` of the pipeline is off).
    """

    adapter_type: ClassVar[type[Adapter]] = CogVideoXAdapter
