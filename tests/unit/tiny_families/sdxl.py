"""An untrained Stable Diffusion XL pipeline of the published classes."""

from __future__ import annotations

from typing import Any

import torch

from mmrl.generative.identity_vae import identity_vae
from mmrl.generative.tiny import _clip
from mmrl.generative.tiny_text import word_tokenizer

CLIP = 16


def tiny_sdxl(zeros: bool = True, seed: int = 0) -> Any:
    """With the Euler scheduler of the published checkpoint; `zeros`: no negative prompt is zeros."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet: Any = UNet2DConditionModel(
            sample_size=16, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=2 * CLIP, attention_head_dim=(2, 2), transformer_layers_per_block=(1, 1), norm_num_groups=4,
            use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + CLIP,
        )  # fmt: skip
        clips = [_clip(CLIP, 2, projection=False), _clip(CLIP, 2, projection=True)]
        vae = identity_vae(16)
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=clips[0],
        text_encoder_2=clips[1],
        tokenizer=word_tokenizer(),
        tokenizer_2=word_tokenizer(),
        unet=unet.eval(),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )
