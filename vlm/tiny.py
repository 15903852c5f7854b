"""A tiny Qwen3-VL with random weights: for tests, demos and a first look on a laptop.

Everything about it is what a downloaded model has: `AutoModelForImageTextToText` and `AutoProcessor` load a saved folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mmrl.vlm.tiny_text import VOCABULARY, chat_template, tiny_tokenizer

PATCH = 14
"""Side of a patch in pixels; two by two patches become one token."""


def tiny_processor(min_pixels: int = 28 * 28, max_pixels: int = 112 * 112) -> Any:
    """A Qwen3VLProcessor of 14-pixel patches: a picture of 56 x 56 is 4 tokens. Bounds are pixels after resizing."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=PATCH, size=size),
        tokenizer=tiny_tokenizer(),
        video_processor=Qwen3VLVideoProcessor(
            patch_size=PATCH,
            size={"shortest_edge": 2 * min_pixels, "longest_edge": 16 * max_pixels},
            cap_pixels_per_frame=False,
        ),
        # the processor writes a time and a pair of vision brackets around every frame itself
        chat_template=chat_template("<|video_pad|>"),
    )


def tiny_qwen3vl(seed: int = 0, min_pixels: int = 28 * 28, max_pixels: int = 112 * 112) -> tuple[Any, Any]:
    """An untrained Qwen3VLForConditionalGeneration of 1.3 million parameters and its processor; the same seed gives the
    same weights."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    processor = tiny_processor(min_pixels, max_pixels)
    tokenizer = processor.tokenizer
    config_type: Any = Qwen3VLConfig
    config = config_type(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
            "initializer_range": 0.05,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_heads": 4,
            "patch_size": PATCH,
            "out_hidden_size": 128,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
            "initializer_range": 0.05,
        },
        tie_word_embeddings=True,
        **special_ids(tokenizer),
    )
    return build(Qwen3VLForConditionalGeneration, config, tokenizer, seed), processor


def special_ids(tokenizer: Any) -> dict[str, int]:
    """The ids of the vision tokens as a Qwen config names them."""
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
             "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}  # fmt: skip
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}


def build(model_class: Any, config: Any, tokenizer: Any, seed: int) -> Any:
    """A model with weights drawn from `seed` that ends at the tokenizer's end."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def build_tiny_qwen3vl(folder: str | Path, seed: int = 0, **options: Any) -> None:
    """Make `tiny_qwen3vl` and save model and processor as a folder."""
    save(*tiny_qwen3vl(seed, **options), folder)


def save(model: Any, processor: Any, folder: str | Path) -> None:
    """Write a model and its processor into one folder."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
