"""What is known of published checkpoints without downloading them: how their network differs from the defaults of its class in
diffusers, and how many parameters their encoders and VAE have.

The network's own count is not written down: it is counted on the meta device (see `mmrl.generative.footprint`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CLIP_L, CLIP_BIG_G, CLIP_H_VISION = 0.123e9, 0.695e9, 0.632e9
T5_XXL, UMT5_XXL, GEMMA_2B, LLAMA_8B = 4.762e9, 5.681e9, 2.614e9, 7.505e9
QWEN3_4B, QWEN25_VL_7B, MISTRAL_24B = 4.022e9, 8.292e9, 24.0e9
VAE_2D, VAE_WAN, VAE_HUNYUAN, VAE_COGVIDEO, VAE_DC, VAE_LTX = 0.084e9, 0.127e9, 0.246e9, 0.216e9, 0.312e9, 0.42e9


@dataclass(frozen=True)
class Tokens:
    """Tokens of a network class: the side in pixels and the frames of one, and how many text tokens stand beside them (0 where
    text is only cross-attended)."""

    pixels: int
    frames: int = 1
    text: int = 0


TOKENS: dict[str, Tokens] = {
    "SD3Transformer2DModel": Tokens(16, text=333),
    "FluxTransformer2DModel": Tokens(16, text=512),
    "Flux2Transformer2DModel": Tokens(16, text=512),
    "QwenImageTransformer2DModel": Tokens(16, text=128),
    "ZImageTransformer2DModel": Tokens(16, text=128),
    "SanaTransformer2DModel": Tokens(32),
    "WanTransformer3DModel": Tokens(16, frames=4),
    "HunyuanVideoTransformer3DModel": Tokens(16, frames=4, text=256),
    "LTXVideoTransformer3DModel": Tokens(32, frames=8),
    "CogVideoXTransformer3DModel": Tokens(16, frames=4, text=226),
    "Kandinsky5Transformer3DModel": Tokens(16, frames=4),
}


@dataclass(frozen=True)
class Published:
    """A checkpoint: the class of its network, what differs from the defaults of that class, parameters of the frozen parts,
    how many such networks it has, how many source pictures stand beside the tokens, and the size it was made for."""

    network: str
    config: Mapping[str, Any] = field(default_factory=dict)
    encoders: float = 0.0
    vae: float = VAE_2D
    networks: int = 1
    sources: int = 0
    height: int = 1024
    width: int = 1024
    frames: int = 1


_SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
_SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_SD3 = {"qk_norm": "rms_norm", "joint_attention_dim": 4096, "pooled_projection_dim": 2048, "sample_size": 128}
_SD35M = _SD3 | {
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "dual_attention_layers": tuple(range(13)),
    "pos_embed_max_size": 384,
}
_SD35L = _SD3 | {
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "pos_embed_max_size": 192,
}
_SD3_TEXT = CLIP_L + CLIP_BIG_G + T5_XXL
_FLUX = {"guidance_embeds": True}
_WAN_1_3B = {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
_WAN_I2V = {"in_channels": 36}
_COG_5B = {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}

PUBLISHED: dict[str, Published] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": Published(
        "UNet2DConditionModel", _SD15, CLIP_L, height=512, width=512
    ),
    "stabilityai/stable-diffusion-xl-base-1.0": Published("UNet2DConditionModel", _SDXL, CLIP_L + CLIP_BIG_G),
    "stabilityai/stable-diffusion-3.5-medium": Published("SD3Transformer2DModel", _SD35M, _SD3_TEXT),
    "stabilityai/stable-diffusion-3.5-large": Published("SD3Transformer2DModel", _SD35L, _SD3_TEXT),
    "black-forest-labs/FLUX.1-dev": Published("FluxTransformer2DModel", _FLUX, CLIP_L + T5_XXL),
    "black-forest-labs/FLUX.1-schnell": Published("FluxTransformer2DModel", {}, CLIP_L + T5_XXL),
    "black-forest-labs/FLUX.1-Kontext-dev": Published("FluxTransformer2DModel", _FLUX, CLIP_L + T5_XXL, sources=1),
    "black-forest-labs/FLUX.2-dev": Published("Flux2Transformer2DModel", {}, MISTRAL_24B),
    "Qwen/Qwen-Image": Published("QwenImageTransformer2DModel", {}, QWEN25_VL_7B, VAE_WAN, height=1328, width=1328),
    "Qwen/Qwen-Image-Edit": Published("QwenImageTransformer2DModel", {}, QWEN25_VL_7B, VAE_WAN, sources=1),
    "Tongyi-MAI/Z-Image-Turbo": Published("ZImageTransformer2DModel", {}, QWEN3_4B),
    "Efficient-Large-Model/Sana_1600M_1024px_diffusers": Published("SanaTransformer2DModel", {}, GEMMA_2B, VAE_DC),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": Published(
        "WanTransformer3DModel", _WAN_1_3B, UMT5_XXL, VAE_WAN, height=480, width=832, frames=81
    ),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": Published(
        "WanTransformer3DModel", {}, UMT5_XXL, VAE_WAN, height=480, width=832, frames=81
    ),
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": Published(
        "WanTransformer3DModel",
        _WAN_I2V | {"image_dim": 1280, "added_kv_proj_dim": 5120},
        UMT5_XXL + CLIP_H_VISION,
        VAE_WAN,
        height=480,
        width=832,
        frames=81,
    ),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": Published(
        "WanTransformer3DModel", {}, UMT5_XXL, VAE_WAN, networks=2, height=480, width=832, frames=81
    ),
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": Published(
        "WanTransformer3DModel", _WAN_I2V, UMT5_XXL, VAE_WAN, networks=2, height=480, width=832, frames=81
    ),
    "hunyuanvideo-community/HunyuanVideo": Published(
        "HunyuanVideoTransformer3DModel", {}, LLAMA_8B + CLIP_L, VAE_HUNYUAN, height=720, width=1280, frames=129
    ),
    "Lightricks/LTX-Video": Published(
        "LTXVideoTransformer3DModel", {}, T5_XXL, VAE_LTX, height=512, width=704, frames=161
    ),
    "THUDM/CogVideoX-2b": Published(
        "CogVideoXTransformer3DModel", {}, T5_XXL, VAE_COGVIDEO, height=480, width=720, frames=49
    ),
    "THUDM/CogVideoX-5b": Published(
        "CogVideoXTransformer3DModel", _COG_5B, T5_XXL, VAE_COGVIDEO, height=480, width=720, frames=49
    ),
}
