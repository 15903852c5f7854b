"""The tiny models' language: a byte-level BPE of a few hundred tokens, learned from a short list of sentences when it is
needed, and a chat template in the ChatML manner."""

from __future__ import annotations

import itertools
import json
from typing import Any

VOCABULARY = 400
"""Tokens of the tokenizer, the special ones included."""

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
"""Tokens of their own that stay in the decoded text."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "<|im_start|>{{ message.role }}{{ '\n' }}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif part.type == 'video' -%}VIDEO_SLOT"
    "{%- elif part.type == 'text' -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "<|im_end|>{{ '\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\n' }}{%- endif -%}"
)


def chat_template(video_slot: str = "<|vision_start|><|video_pad|><|vision_end|>") -> str:
    """ChatML with one slot per image and `video_slot` per video."""
    return CHAT_TEMPLATE.replace("VIDEO_SLOT", video_slot)


COLOURS = ("red", "green", "blue", "yellow", "white", "black", "grey", "orange", "purple", "cyan")
SHAPES = ("square", "circle", "triangle", "cross", "star", "dot", "bar", "piece", "patch", "picture")
PLACES = ("top left", "top right", "bottom left", "bottom right", "left", "right", "above", "below", "middle", "centre")


def sentences() -> list[str]:
    """What the tokenizer learns from: puzzle questions and the form of their answers."""
    found = [f"How many {colour} {shape}s are there?" for colour, shape in itertools.product(COLOURS, SHAPES)]
    found += [f"Which quarter holds the {colour} {shape}?" for colour, shape in itertools.product(COLOURS, SHAPES)]
    found += [f"Where is the {colour} {shape}? It is in the {place}." for colour, shape, place in
              zip(COLOURS * 3, SHAPES * 3, PLACES * 3, strict=True)]  # fmt: skip
    found += [f"Is the {shape} {place} of the {colour} {shape}? Answer yes or no." for colour, shape, place in
              zip(COLOURS, SHAPES, PLACES, strict=True)]  # fmt: skip
    found += [
        f"By how many degrees is the picture rotated? It is turned by {angle} degrees." for angle in (0, 90, 180, 270)
    ]
    found += [f"Which piece fits the hole: A, B, C, D, E, F, G or H? The answer is {letter}." for letter in "ABCDEFGH"]
    found += [f"Put the {n} pieces in the right order. The order is 1, 2, 3, 4, 5, 6, 7, 8, 9." for n in range(2, 10)]
    found += [f"Which frame comes first, {a} or {b}? What is the next step in the maze: up, down, left or right?" for a, b in
              ("AB", "CD", "EF", "GH")]  # fmt: skip
    found += [f"I count {number} of them, so the answer is {number}." for number in range(10)] * 3
    found += [f"I see a {colour} {shape} here." for colour, shape in zip(COLOURS, SHAPES, strict=True)]
    found += ["user", "assistant", "system", "Think first, then give the answer.", "You are a helpful assistant."] * 80
    return found


def train_bpe(size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-level BPE of `size` tokens, the same on every machine."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    trainer: Any = trainers.BpeTrainer
    learner.train_from_iterator(
        sentences(),
        trainer(vocab_size=size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False),
    )
    model = json.loads(learner.to_str())["model"]
    return dict(model["vocab"]), [(first, second) for first, second in model["merges"]]


def tiny_tokenizer(eos: str = "<|im_end|>", more: tuple[str, ...] = (), **named: str) -> Any:
    """A Qwen2Tokenizer of `VOCABULARY` tokens: bytes, merges, special tokens (`SPECIAL`, `more` and the values of `named`,
    which are also attributes of the tokenizer), and `TAGS`."""
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    special = list(dict.fromkeys((*SPECIAL, *more, eos, *named.values())))
    vocab, merges = train_bpe(VOCABULARY - len(special) - len(TAGS))
    for token in special:
        vocab[token] = len(vocab)
    kwargs: dict[str, Any] = {"merges": merges, **({"extra_special_tokens": named} if named else {})}
    tokenizer = Qwen2Tokenizer(vocab=vocab, eos_token=eos, pad_token=SPECIAL[0], unk_token=SPECIAL[0], **kwargs)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    assert len(tokenizer) == VOCABULARY
    return tokenizer
