"""Untrained CogVideoX pipelines of the published classes: 32x32 pixels and 9 frames are 12 tokens (1.5: 8)."""

from __future__ import annotations

from typing import Any

import torch
from tiny_families.wan import WIDTH, tokenizer

from mmrl.generative.tiny_text import WORDS

TEXT_TOKENS = 8


def tiny_cogvideox(kind: str = "5b", scheduler: str = "CogVideoXDDIMScheduler", seed: int = 0) -> Any:
    """A CogVideoXPipeline in the manner of "2b" (fixed positions), "5b" (rotary positions) or "1.5" (patches of two latent frames)."""
    import diffusers
    from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel
    from transformers import T5Config, T5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae: Any = AutoencoderKLCogVideoX(
            block_out_channels=(4, 4, 4, 4),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            sample_height=32,
            sample_width=32,
            scaling_factor=0.7,
        )
        transformer: Any = CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=WIDTH,
            num_layers=2,
            sample_height=4,
            sample_width=4,
            sample_frames=9,
            patch_size_t=2 if kind == "1.5" else None,
            patch_bias=kind != "1.5",
            max_text_seq_length=TEXT_TOKENS,
            use_rotary_positional_embeddings=kind != "2b",
        )
        text_encoder = T5EncoderModel(
            T5Config(
                vocab_size=len(WORDS), d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0,
                pad_token_id=0, eos_token_id=1,
            )
        )  # fmt: skip
    return CogVideoXPipeline(
        tokenizer=tokenizer(TEXT_TOKENS),
        text_encoder=text_encoder.eval(),
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=getattr(diffusers, scheduler)(
            beta_schedule="scaled_linear",
            clip_sample=False,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            snr_shift_scale=1.0,
            timestep_spacing="trailing",
        ),
    )
