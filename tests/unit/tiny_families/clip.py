"""A tiny CLIP text encoder and its tokenizer, of the published classes: letters are tokens."""

from __future__ import annotations

from string import ascii_lowercase
from typing import Any

START, END = "<|startoftext|>", "<|endoftext|>"


def tiny_clip(width: int) -> tuple[Any, Any]:
    """A CLIPTextModel with 77 positions, `width` wide, and its CLIPTokenizer; weights from the global generator."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [letter + end for end in ("", "</w>") for letter in ascii_lowercase]
    vocabulary = {token: i for i, token in enumerate((*letters, START, END))}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], unk_token=END, pad_token=END, model_max_length=77)
    config = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=1,
        num_attention_heads=2, bos_token_id=vocabulary[START], eos_token_id=vocabulary[END], pad_token_id=vocabulary[END],
        initializer_factor=10.0,
    )  # fmt: skip
    return CLIPTextModel(config).eval(), tokenizer
