"""Tiny models of the other vision-language families with random weights, to test what is common to all of them."""

from __future__ import annotations

from typing import Any

import torch

from mmrl.vlm.tiny import PATCH, build, special_ids
from mmrl.vlm.tiny_text import VOCABULARY, chat_template, tiny_tokenizer

SIZE = {"shortest_edge": 28 * 28, "longest_edge": 112 * 112}
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
}
SQUARE = 32
"""Side in pixels of a tile of SmolVLM and InternVL: 4 x 4 patches, 4 tokens."""


def tiny_qwen2vl(seed: int = 0) -> tuple[Any, Any]:
    """An untrained Qwen2VLForConditionalGeneration and its processor."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2, "num_heads": 2, "patch_size": PATCH,
              "initializer_range": 0.1}  # fmt: skip
    return _qwen(Qwen2VLForConditionalGeneration, Qwen2VLConfig, Qwen2VLProcessor, vision, seed)


def tiny_qwen25vl(seed: int = 0) -> tuple[Any, Any]:
    """An untrained Qwen2_5_VLForConditionalGeneration (windows of 56 pixels, then all patches) and its processor."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": PATCH,
              "out_hidden_size": 64, "window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 2,
              "initializer_range": 0.1}  # fmt: skip
    return _qwen(Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig, Qwen2_5_VLProcessor, vision, seed)


def tiny_smolvlm(seed: int = 0) -> tuple[Any, Any]:
    """An untrained SmolVLMForConditionalGeneration and its processor; a picture is 4 tiles and a small copy of the whole."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessor, SmolVLMProcessor
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

    tiles = tuple(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2))
    tokenizer = tiny_tokenizer(
        "<end_of_utterance>",
        tiles,
        image_token="<image>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
        video_token="<video>",
    )
    edge = {"longest_edge": SQUARE}
    video_processor: Any = SmolVLMVideoProcessor
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(size={"longest_edge": 2 * SQUARE}, max_image_size=edge),
        tokenizer,
        video_processor(size=edge, max_image_size=edge, video_sampling={"fps": 1, "max_frames": 8, "video_size": edge}),
        image_seq_len=4,
        chat_template=(
            "{%- for message in messages -%}{{ message.role | capitalize }}: {% for part in message.content -%}"
            "{%- if part.type == 'image' -%}<image>{%- elif part.type == 'video' -%}<video>{%- else -%}{{ part.text }}{%- endif -%}"
            "{%- endfor -%}<end_of_utterance>{{ '\n' }}{%- endfor -%}{%- if add_generation_prompt -%}Assistant:{%- endif -%}"
        ),
    )
    config_type: Any = SmolVLMConfig
    config = config_type(
        text_config={**TEXT, "model_type": "llama", "pad_token_id": tokenizer.pad_token_id, "tie_word_embeddings": False},
        vision_config={"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
                       "image_size": SQUARE, "patch_size": 8, "initializer_range": 0.1},
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return build(SmolVLMForConditionalGeneration, config, tokenizer, seed), processor


def tiny_internvl(seed: int = 0) -> tuple[Any, Any]:
    """An untrained InternVLForConditionalGeneration and its processor, one tile per picture."""
    from transformers import GotOcr2ImageProcessor, InternVLConfig, InternVLForConditionalGeneration, InternVLProcessor
    from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor

    tokenizer = tiny_tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    square = {"height": SQUARE, "width": SQUARE}
    template = chat_template("<video>").replace("<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>")
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=square, max_patches=1),
        tokenizer,
        InternVLVideoProcessor(size=square),
        image_seq_length=4,
        chat_template=template,
    )
    config = InternVLConfig(
        text_config={**TEXT, "model_type": "qwen2", "tie_word_embeddings": True},
        vision_config={"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
                       "image_size": SQUARE, "patch_size": 8, "initializer_range": 0.1},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )  # fmt: skip
    return build(InternVLForConditionalGeneration, config, tokenizer, seed), processor


def tiny_gemma3(seed: int = 0) -> tuple[Any, Any]:
    """An untrained Gemma3ForConditionalGeneration and its processor: 4 tokens per picture, which see each other whichever
    comes first; a layer with a window of 16 tokens, then one without."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3ImageProcessor, Gemma3Processor

    tokenizer = tiny_tokenizer(
        "<end_of_turn>",
        ("<start_of_turn>",),
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )
    processor = Gemma3Processor(
        Gemma3ImageProcessor(size={"height": SQUARE, "width": SQUARE}),
        tokenizer,
        image_seq_length=4,
        chat_template=(
            "{%- for message in messages -%}<start_of_turn>{{ message.role }}{{ '\n' }}{%- for part in message.content -%}"
            "{%- if part.type == 'image' -%}<start_of_image>{%- else -%}{{ part.text }}{%- endif -%}"
            "{%- endfor -%}<end_of_turn>{{ '\n' }}{%- endfor -%}"
            "{%- if add_generation_prompt -%}<start_of_turn>model{{ '\n' }}{%- endif -%}"
        ),
    )
    config_type: Any = Gemma3Config
    config = config_type(
        text_config={**TEXT, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16,
                     "layer_types": ["sliding_attention", "full_attention"], "pad_token_id": tokenizer.pad_token_id,
                     "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None},
        vision_config={"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
                       "image_size": SQUARE, "patch_size": 8, "initializer_range": 0.1},
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_id=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
    )  # fmt: skip
    model = build(Gemma3ForConditionalGeneration, config, tokenizer, seed)
    # made of zeros, which would hide every picture
    projection = model.model.multi_modal_projector.mm_input_projection_weight
    torch.nn.init.normal_(projection, std=0.2, generator=torch.Generator().manual_seed(seed))
    return model, processor


def _qwen(
    model_class: Any, config_class: Any, processor_class: Any, vision: dict[str, Any], seed: int
) -> tuple[Any, Any]:
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    tokenizer = tiny_tokenizer()
    rope = {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [2, 3, 3]}
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "pad_token_id": tokenizer.pad_token_id}
    config = config_class(
        text_config={**TEXT, "rope_parameters": rope, **ends}, vision_config=vision, **special_ids(tokenizer)
    )
    processor = processor_class(
        Qwen2VLImageProcessor(size=SIZE), tokenizer, Qwen2VLVideoProcessor(size=SIZE), chat_template=chat_template()
    )
    return build(model_class, config, tokenizer, seed), processor
