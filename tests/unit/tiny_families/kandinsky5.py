"""Untrained Kandinsky 5 pipelines of the published classes: 32x32 pixels and 5 frames are 8 tokens."""

from __future__ import annotations

from typing import Any

import torch
from tiny_families.clip import tiny_clip

from mmrl.vlm.tiny_others import TEXT, tiny_qwen25vl

CLIP_WIDTH = 16


def tiny_kandinsky5(image: bool = False, seed: int = 0, **network: Any) -> Any:
    """A Kandinsky5T2VPipeline, or with `image` a Kandinsky5T2IPipeline; `network`: more of the network's config."""
    from diffusers import (
        AutoencoderKL,
        AutoencoderKLHunyuanVideo,
        FlowMatchEulerDiscreteScheduler,
        Kandinsky5T2IPipeline,
        Kandinsky5T2VPipeline,
        Kandinsky5Transformer3DModel,
    )
    from transformers import Qwen2VLProcessor

    encoder, processor = tiny_qwen25vl(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        blocks = {"block_out_channels": (8,) * 4, "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
        vae: Any
        if image:
            vae = AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                scaling_factor=0.36,
                shift_factor=0.12,
                **blocks,
            )
        else:
            vae = AutoencoderKLHunyuanVideo(**blocks)
        clip, clip_tokenizer = tiny_clip(CLIP_WIDTH)
        transformer: Any = Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            out_visual_dim=4,
            in_text_dim=TEXT["hidden_size"],
            in_text_dim2=CLIP_WIDTH,
            time_dim=16,
            model_dim=24,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=2,
            axes_dims=(4, 4, 4),
            **network,
        )
        for name, parameter in transformer.named_parameters():  # they start at zero, where no input matters
            if "modulation.out_layer" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    parts: dict[str, Any] = {
        "transformer": transformer.eval(),
        "vae": vae.eval(),
        "text_encoder": encoder,
        "tokenizer": Qwen2VLProcessor(
            processor.image_processor, processor.tokenizer, processor.video_processor, processor.chat_template
        ),
        "text_encoder_2": clip,
        "tokenizer_2": clip_tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0 if image else 5.0),
    }
    return (Kandinsky5T2IPipeline if image else Kandinsky5T2VPipeline)(**parts)
