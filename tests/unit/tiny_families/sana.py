"""An untrained SanaPipeline of the published classes: 32x32 pixels are 256 tokens."""

from __future__ import annotations

import string
from typing import Any

import torch

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "\n")


def tokenizer() -> Any:
    """A GemmaTokenizer whose pieces are characters."""
    from transformers import GemmaTokenizer

    pieces = (*SPECIAL, *string.ascii_letters, *string.digits, *string.punctuation)
    return GemmaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])


def tiny_sana(seed: int = 0) -> Any:
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    words = tokenizer()
    blocks = {"block_types": ("ResBlock", "EfficientViTBlock"), "block_out_channels": (8, 8), "layers_per_block": (1, 1),
              "qkv_multiscales": ((), (5,))}  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae: Any = AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            scaling_factor=0.41407,
            **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in blocks.items()},
        )
        transformer: Any = SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=16,
        )
        text_encoder = Gemma2Model(
            Gemma2Config(
                vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8, max_position_embeddings=4096,
                initializer_range=0.2,
            )
        )  # fmt: skip
    return SanaPipeline(
        tokenizer=words,
        text_encoder=text_encoder.eval(),
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=DPMSolverMultistepScheduler(
            use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction", num_train_timesteps=1000
        ),
    )
