"""Untrained LTX-Video pipelines of the published classes: 64x64 pixels and 9 frames are 8 tokens."""

from __future__ import annotations

from typing import Any

import torch
from tiny_families.wan import WIDTH, tokenizer

from mmrl.generative.tiny_text import WORDS


def tiny_ltx(seed: int = 0, **vae_options: Any) -> Any:
    """An LTXPipeline; `vae_options`: more of the VAE's config."""
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXPipeline,
        LTXVideoTransformer3DModel,
    )
    from transformers import T5Config, T5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae: Any = AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(4, 4, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            **vae_options,
        )
        vae.latents_mean.copy_(torch.linspace(-0.3, 0.3, 8))
        vae.latents_std.copy_(torch.linspace(0.6, 1.6, 8))
        transformer: Any = LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=12,
            cross_attention_dim=24,
            caption_channels=WIDTH,
            num_layers=2,
        )
        text_encoder = T5EncoderModel(
            T5Config(
                vocab_size=len(WORDS), d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0,
                pad_token_id=0, eos_token_id=1,
            )
        )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )
    return LTXPipeline(
        scheduler=scheduler,
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer(8),
        transformer=transformer.eval(),
    )
