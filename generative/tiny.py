"""Tiny models of the real classes with random weights: for tests, demos and a first look on a laptop.

Everything about them is what a downloaded pipeline has: `from_pretrained` of plain diffusers loads a saved folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmrl.generative.identity_vae import identity_vae
from mmrl.generative.tiny_text import PHRASES, WORD_TOKENS, WORDS, phrase_tokenizer, word_tokenizer

WORD_SPREAD, PHRASE_SPREAD = 0.1, 1.5
"""Standard deviations of the initial position embeddings of the CLIPs and position biases of the T5."""


def tiny_sd3(
    seed: int = 0,
    size: int = 24,
    patch: int = 8,
    layers: int = 2,
    heads: int = 4,
    head_dim: int = 32,
    clip_width: int = 64,
    clip_layers: int = 2,
    t5_width: int = 128,
) -> Any:
    """An untrained StableDiffusion3Pipeline that predicts clean pixels; the same seed gives the same weights.

    The scheduler is a first-order DPM-Solver++ on flow sigmas, whose steps are Euler steps. `size` must be a multiple of
    `patch`. SD3 reads the last but one layer of its CLIPs, so `clip_layers` is at least 2.
    """
    from diffusers import DPMSolverMultistepScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer: Any = SD3Transformer2DModel(
            sample_size=size,
            patch_size=patch,
            in_channels=3,
            out_channels=3,
            num_layers=layers,
            attention_head_dim=head_dim,
            num_attention_heads=heads,
            joint_attention_dim=t5_width,
            caption_projection_dim=heads * head_dim,
            pooled_projection_dim=2 * clip_width,
            pos_embed_max_size=size // patch,
            qk_norm="rms_norm",
        )
        clips = [_clip(clip_width, clip_layers, projection=True) for _ in range(2)]
        t5 = _t5(t5_width)
        vae = identity_vae(size)
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=DPMSolverMultistepScheduler(
            use_flow_sigmas=True,
            flow_shift=1.0,
            prediction_type="sample",
            solver_order=1,
            algorithm_type="dpmsolver++",
            final_sigmas_type="zero",
        ),
        vae=vae,
        text_encoder=clips[0],
        text_encoder_2=clips[1],
        text_encoder_3=t5,
        tokenizer=word_tokenizer(),
        tokenizer_2=word_tokenizer(),
        tokenizer_3=phrase_tokenizer(),
    )


def tiny_sd15(
    seed: int = 0,
    prediction_type: str = "epsilon",
    size: int = 16,
    width: int = 32,
    clip_width: int = 32,
) -> Any:
    """An untrained StableDiffusionPipeline on pixels with DDIM (steps_offset 1); the same seed gives the same weights."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet: Any = UNet2DConditionModel(
            sample_size=size,
            in_channels=3,
            out_channels=3,
            block_out_channels=(width, 2 * width),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=clip_width,
            attention_head_dim=2,
            norm_num_groups=8,
        )
        clip = _clip(clip_width, 1, projection=False)
        vae = identity_vae(size)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=clip,
        tokenizer=word_tokenizer(),
        unet=unet.eval(),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            set_alpha_to_one=False,
            clip_sample=False,
            prediction_type=prediction_type,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_tiny_sd3(folder: str | Path, seed: int = 0, **sizes: Any) -> None:
    """Make `tiny_sd3` and save it as a pipeline folder."""
    tiny_sd3(seed, **sizes).save_pretrained(folder, safe_serialization=True)


def build_tiny_sd15(folder: str | Path, seed: int = 0, **options: Any) -> None:
    """Make `tiny_sd15` and save it as a pipeline folder."""
    tiny_sd15(seed, **options).save_pretrained(folder, safe_serialization=True)


def _clip(width: int, layers: int, projection: bool) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=WORD_TOKENS,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    model: Any = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()
    _spread(model, "position_embedding", WORD_SPREAD)
    return model


def _t5(width: int) -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(PHRASES),
        d_model=width,
        d_kv=32,
        d_ff=width,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=8,
        pad_token_id=0,
        eos_token_id=1,
    )
    model: Any = T5EncoderModel(config).eval()
    _spread(model, "relative_attention_bias", PHRASE_SPREAD)
    return model


def _spread(model: nn.Module, name: str, std: float) -> None:
    """Draw the weights of the modules called `name` again, wider: tiny encoders learn word order much sooner."""
    for path, module in model.named_modules():
        if path.endswith(name):
            nn.init.normal_(module.weight, 0.0, std)
