"""Untrained FLUX.1 pipelines of the published classes: 32x32 pixels are 4 tokens."""

from __future__ import annotations

from typing import Any

import torch

from mmrl.generative.tiny import _clip, _t5
from mmrl.generative.tiny_text import phrase_tokenizer, word_tokenizer

T5_WIDTH, CLIP_WIDTH = 32, 32


def tiny_flux(kind: str = "FluxPipeline", guidance: bool = True, seed: int = 0) -> Any:
    """A FluxPipeline or FluxKontextPipeline, guidance-distilled (dev) or not (schnell)."""
    import diffusers
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer: Any = FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=T5_WIDTH, pooled_projection_dim=CLIP_WIDTH, guidance_embeds=guidance, axes_dims_rope=(4, 6, 6),
        )  # fmt: skip
        vae: Any = AutoencoderKL(
            in_channels=3, out_channels=3, block_out_channels=(8, 8, 8, 8), norm_num_groups=2, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1,
            scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False, sample_size=32,
        )  # fmt: skip
        clip, t5 = _clip(CLIP_WIDTH, 2, projection=False), _t5(T5_WIDTH)
    return getattr(diffusers, kind)(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=guidance, shift=3.0 if guidance else 1.0),
        vae=vae.eval(),
        text_encoder=clip,
        tokenizer=word_tokenizer(),
        text_encoder_2=t5,
        tokenizer_2=phrase_tokenizer(),
        transformer=transformer.eval(),
    )
