"""Untrained Wan pipelines of the published classes: 32x32 pixels and 5 frames are 8 tokens."""

from __future__ import annotations

from typing import Any

import torch

from mmrl.generative.tiny_text import SPECIAL, WORDS

WIDTH, IMAGE_WIDTH = 16, 12


def tokenizer(tokens: int) -> Any:
    """A T5 tokenizer whose pieces are the words of the tiny captions."""
    from transformers import T5TokenizerFast

    pieces = [(piece, 0.0) for piece in SPECIAL] + [("▁" + word, -1.0) for word in WORDS[len(SPECIAL) :]]
    return T5TokenizerFast(
        vocab=pieces, extra_ids=0, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=tokens
    )


def tiny_wan(experts: int = 1, image: bool = False, clip: bool = False, seed: int = 0) -> Any:
    """A WanPipeline, or with `image` a WanImageToVideoPipeline (with `clip` that of Wan 2.1); two experts part at timestep 800."""
    from diffusers import (
        AutoencoderKLWan,
        UniPCMultistepScheduler,
        WanImageToVideoPipeline,
        WanPipeline,
        WanTransformer3DModel,
    )
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModel,
        UMT5Config,
        UMT5EncoderModel,
    )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae: Any = AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 0.8, 1.2, 2.0],
        )
        networks: list[Any] = [
            WanTransformer3DModel(
                num_attention_heads=2,
                attention_head_dim=12,
                in_channels=4 + 4 + 4 if image else 4,
                out_channels=4,
                text_dim=WIDTH,
                freq_dim=16,
                ffn_dim=32,
                num_layers=2,
                rope_max_seq_len=32,
                image_dim=IMAGE_WIDTH if clip else None,
                added_kv_proj_dim=24 if clip else None,
            )
            for _ in range(experts)
        ]
        text_encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(WORDS), d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0,
                pad_token_id=0, eos_token_id=1,
            )
        )  # fmt: skip
        parts: dict[str, Any] = {
            "vae": vae.eval(),
            "text_encoder": text_encoder.eval(),
            "tokenizer": tokenizer(8),
            "scheduler": UniPCMultistepScheduler(
                use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction", num_train_timesteps=1000
            ),
            "transformer": networks[0].eval(),
            "transformer_2": networks[1].eval() if experts == 2 else None,
            "boundary_ratio": 0.8 if experts == 2 else None,
        }
        if not image:
            return WanPipeline(**parts)
        if clip:
            config = CLIPVisionConfig(
                hidden_size=IMAGE_WIDTH, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
                image_size=16, patch_size=8, projection_dim=8,
            )  # fmt: skip
            parts["image_encoder"] = CLIPVisionModel(config).eval()
            parts["image_processor"] = CLIPImageProcessor(
                size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
            )
    return WanImageToVideoPipeline(**parts)
