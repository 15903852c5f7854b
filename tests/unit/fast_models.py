"""Tiny models of the three classes, prompts for them, and the plain way to score: one (prompt, answer) at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmrl.vlm.encoded import EncodedPrompt

TEXT, IMAGE, VIDEO, START, END = 60, 61, 62, 63, 64
WRITTEN = {IMAGE: 65, VIDEO: 66}
"""Twins of the placeholders: a model that writes a placeholder writes a token like any other, but the plain way would look
for a picture behind it."""
VOCABULARY = 70
CLASSES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
PATCH_WIDTH = 3 * 2 * 4 * 4

text = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2, "tie_word_embeddings": False,
}  # fmt: skip
ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}


def rope(section: list[int]) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 100.0, "mrope_section": section}


def tiny(kind: str, seed: int = 0, **text_options: Any) -> Any:
    """A model of 3 layers with random weights, large enough that nothing is nearly uniform."""
    import transformers as tf

    torch.manual_seed(seed)
    if kind == "qwen2_vl":
        vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
        config: Any = tf.Qwen2VLConfig(
            text_config={**text, "rope_parameters": rope([2, 1, 1]), **text_options}, vision_config=vision, **ids
        )
        model: Any = tf.Qwen2VLForConditionalGeneration(config)
    elif kind == "qwen2_5_vl":
        vision = {
            "depth": 2, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32, "num_heads": 2, "patch_size": 4,
            "window_size": 16, "fullatt_block_indexes": [1], "tokens_per_second": 2,
        }  # fmt: skip
        config = tf.Qwen2_5_VLConfig(
            text_config={**text, "rope_parameters": rope([2, 1, 1]), **text_options}, vision_config=vision, **ids
        )
        model = tf.Qwen2_5_VLForConditionalGeneration(config)
    else:
        vision = {
            "depth": 3, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32, "num_heads": 2, "patch_size": 4,
            "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 2],
        }  # fmt: skip
        config = tf.Qwen3VLConfig(
            text_config={**text, "head_dim": 8, "rope_parameters": rope([2, 1, 1]), **text_options},
            vision_config=vision, **ids,
        )  # fmt: skip
        model = tf.Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # norms and biases away from one and zero, so that a forgotten one is seen
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif "visual" in name:
                parameter.mul_(4)
        embeddings = model.get_input_embeddings().weight
        for placeholder, twin in WRITTEN.items():
            embeddings[twin] = embeddings[placeholder]
    return model.eval()


def prompt(kind: str, parts: Sequence[int | tuple[str, int, int, int]], seed: int = 0) -> EncodedPrompt:
    """`parts`: a number of text tokens, or ("image" | "video", t, h, w) in patches before merging."""
    g = torch.Generator().manual_seed(seed)
    tokens: list[Tensor] = []
    kinds: list[Tensor] = []
    pixels: dict[str, list[Tensor]] = {"image": [], "video": []}
    grids: dict[str, list[list[int]]] = {"image": [], "video": []}

    def add(token: Tensor, kind_of: int) -> None:
        tokens.append(token)
        kinds.append(torch.full_like(token, kind_of))

    for part in parts:
        if isinstance(part, int):
            add(torch.randint(0, TEXT, (part,), generator=g), 0)
            continue
        name, t, h, w = part
        # Qwen3-VL writes every frame of a video on its own, between times and brackets
        frames = t if kind == "qwen3_vl" and name == "video" else 1
        for _ in range(frames):
            add(torch.tensor([START]), 0)
            token, code = (IMAGE, 1) if name == "image" else (VIDEO, 2)
            add(torch.full((t * h * w // 4 // frames,), token), code)
            add(torch.tensor([END]), 0)
        pixels[name].append(torch.randn(t * h * w, PATCH_WIDTH, generator=g))
        grids[name].append([t, h, w])
    media: dict[str, Tensor] = {}
    if pixels["image"]:
        media |= {"pixel_values": torch.cat(pixels["image"]), "image_grid_thw": torch.tensor(grids["image"])}
    if pixels["video"]:
        media |= {"pixel_values_videos": torch.cat(pixels["video"]), "video_grid_thw": torch.tensor(grids["video"])}
        if kind == "qwen2_5_vl":
            media["second_per_grid_ts"] = torch.linspace(0.5, 1.5, len(grids["video"]))
    return EncodedPrompt(torch.cat(tokens), torch.cat(kinds), media)


def answer(length: int, seed: int) -> Tensor:
    return torch.randint(0, TEXT, (length,), generator=torch.Generator().manual_seed(1000 + seed))


def mixed_groups(kind: str) -> list[tuple[EncodedPrompt, list[Tensor]]]:
    """Ragged prompts of one and several images, a video, both, and text alone, with ragged answers, one of them empty."""
    shapes: list[list[int | tuple[str, int, int, int]]] = [
        [3, ("image", 1, 4, 6), 4],
        [7],
        [2, ("video", 2, 4, 4), 1, ("image", 1, 8, 4), 2, ("image", 1, 2, 2), 3],
        [("video", 3, 2, 4), 5],
    ]
    lengths = [[3, 5, 1], [4, 0, 2, 6], [1], [2, 7]]
    return [
        (prompt(kind, parts, i), [answer(n, 10 * i + j) for j, n in enumerate(each)])
        for i, (parts, each) in enumerate(zip(shapes, lengths, strict=True))
    ]


def naive_logits(model: Any, prompt: EncodedPrompt, answer: Tensor) -> Tensor:
    """Logits `(len, V)` of the answer's tokens, from the whole sequence through `model(**inputs)`."""
    written = torch.tensor([WRITTEN.get(token, token) for token in answer.tolist()], dtype=torch.int64)
    sequence = torch.cat((prompt.input_ids, written))[None]
    kinds = torch.cat((prompt.kinds, torch.zeros_like(answer)))[None]
    out = model(
        input_ids=sequence,
        attention_mask=torch.ones_like(sequence),
        mm_token_type_ids=kinds,
        use_cache=False,
        **prompt.media,
    )
    return out.logits[0, len(prompt) - 1 : -1]


def naive_log_prob(
    model: Any, prompt: EncodedPrompt, answer: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy `(len,)` of the answer's tokens."""
    log_p = (naive_logits(model, prompt, answer).float() / temperature).log_softmax(-1)
    return log_p.gather(-1, answer[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)
