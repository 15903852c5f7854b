"""Untrained Qwen-Image pipelines of the published classes: 32x32 pixels are 4 tokens."""

from __future__ import annotations

from typing import Any

import torch

from mmrl.vlm.tiny_others import TEXT, tiny_qwen25vl


def tiny_qwen_image(kind: str = "QwenImagePipeline", seed: int = 0, **network: Any) -> Any:
    """A QwenImagePipeline, QwenImageEditPipeline or QwenImageEditPlusPipeline; `network`: more of the network's config."""
    import diffusers
    from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel

    encoder, processor = tiny_qwen25vl(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae: Any = AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 0.8, 1.2, 2.0],
        )
        transformer: Any = QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=TEXT["hidden_size"],
            axes_dims_rope=(4, 6, 6),
            **network,
        )
    parts: dict[str, Any] = {
        "vae": vae.eval(),
        "text_encoder": encoder,
        "tokenizer": processor.tokenizer,
        "transformer": transformer.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            base_image_seq_len=256,
            max_image_seq_len=8192,
            shift_terminal=0.02,
            time_shift_type="exponential",
        ),
    }
    if kind != "QwenImagePipeline":
        parts["processor"] = processor
    return getattr(diffusers, kind)(**parts)
