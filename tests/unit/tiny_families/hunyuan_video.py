"""Untrained HunyuanVideo pipelines of the published classes: 32x32 pixels and 5 frames are 8 tokens."""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Any

import torch
from tiny_families.clip import tiny_clip

WIDTH = 16
TEXT_TOKENS = 56
"""Enough for what the pipeline leaves of its template, of which it takes 95 tokens away, and for a caption in letters."""
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def llama_tokenizer() -> Any:
    """A LlamaTokenizer that knows the words of the pipeline's template, so that it has the published length or little more; the rest are letters."""
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
    from transformers import LlamaTokenizer

    template = DEFAULT_PROMPT_TEMPLATE["template"]
    letters = sorted({*template, *"abcdefghijklmnopqrstuvwxyz", "▁"})
    words = set(re.findall("(?<= )[a-zA-Z]+", template))
    merges = list(dict.fromkeys(pair for word in sorted(words) for pair in _prefixes("▁" + word)))
    tokens = (*SPECIAL, *letters, *(left + right for left, right in merges))
    tokenizer = LlamaTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=merges, pad_token="<pad>", padding_side="right"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[4:])})
    return tokenizer


def _prefixes(word: str) -> list[tuple[str, str]]:
    """What is merged, one letter at a time, until `word` is one token."""
    return [*zip(accumulate(word[:-1]), word[1:], strict=True)]


def tiny_hunyuan_video(guidance: bool = True, seed: int = 0) -> Any:
    """A HunyuanVideoPipeline, guidance-distilled or not."""
    from diffusers import (
        AutoencoderKLHunyuanVideo,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideoPipeline,
        HunyuanVideoTransformer3DModel,
    )
    from transformers import LlamaConfig, LlamaModel

    tokenizer = llama_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae: Any = AutoencoderKLHunyuanVideo(
            block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4, latent_channels=4
        )
        transformer: Any = HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            guidance_embeds=guidance,
            text_embed_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            rope_axes_dim=(4, 4, 4),
        )
        text_encoder = LlamaModel(
            LlamaConfig(
                vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=3,
                num_attention_heads=2, num_key_value_heads=2, initializer_range=0.3, pad_token_id=3,
            )
        )  # fmt: skip
        text_encoder_2, tokenizer_2 = tiny_clip(WIDTH)
    return HunyuanVideoPipeline(
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
    )
