"""Stable Diffusion 1.x and 2.x: a UNet that predicts epsilon or v at integer timesteps, one CLIP, a VAE with 4 channels."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from mmrl.generative.conditioning import Tensors
from mmrl.generative.diffusion import DiffusionPolicy
from mmrl.generative.families.base import Adapter
from mmrl.generative.families.loaded import DType, Loaded


class SD15Adapter(Adapter):
    pipeline = "StableDiffusionPipeline"
    network_name = "unet"
    encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder",)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")

    @classmethod
    def read(cls, path: str, dtype: str, revision: str | None = None, **options: Any) -> Any:
        """As `Adapter.read`, with DDIM on the same betas in the place of another diffusion scheduler."""
        from diffusers import DDIMScheduler

        pipe = super().read(path, dtype, revision, **options)
        config = pipe.scheduler.config
        if not isinstance(pipe.scheduler, DDIMScheduler) and "beta_schedule" in config:
            pipe.scheduler = DDIMScheduler.from_config(config, clip_sample=False, thresholding=False)
        return pipe

    @property
    def size_unit(self) -> int:
        return int(self.pipe.vae_scale_factor * 2 ** (len(self.pipe.unet.config.block_out_channels) - 1))

    def encode_texts(self, texts: list[str]) -> Tensors:
        prompt, _ = self.pipe.encode_prompt(
            texts, self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"prompt": prompt}

    def predict(self, x: Tensor, timestep: Tensor, cond: Tensors) -> Tensor:
        return self.network(self.cast(x), timestep, encoder_hidden_states=self.cast(cond["prompt"]), return_dict=False)[
            0
        ].float()

    def call_options(self) -> dict[str, Any]:
        return {"eta": 0.0}


class SD15(Loaded, DiffusionPolicy):
    """Stable Diffusion 1.x or 2.x with DDIM: `path` is a diffusers folder or hub id.

    A checkpoint that comes with another scheduler (SD1.5: PNDM) gets a DDIMScheduler of the same settings, without clipping
    and thresholding; it is saved and exported with the model.
    """

    adapter_type: ClassVar[type[Adapter]] = SD15Adapter

    dtype: DType = "float32"

    def read_options(self) -> dict[str, Any]:
        return {"safety_checker": None, "requires_safety_checker": False}
