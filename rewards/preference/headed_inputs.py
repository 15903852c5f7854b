"""What a Qwen-VL reward model reads: media of a bounded size, one user turn per row, and where in it the reward tokens are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F


class Row(NamedTuple):
    """One user turn: pictures in order, then the video, then the text. Media are uint8 and sized already."""

    text: str
    pictures: tuple[np.ndarray, ...] = ()
    video: np.ndarray | None = None


def resized(height: int, width: int, factor: int, low: int, high: int) -> tuple[int, int]:
    """Sides that are multiples of `factor` with `low` to `high` pixels, as Qwen-VL computes them. Raises ValueError for a strip."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    return smart_resize(height, width, factor=factor, min_pixels=low, max_pixels=high)


def sized_picture(picture: np.ndarray, factor: int, low: int, high: int) -> np.ndarray:
    """A uint8 picture (H, W, 3) resized as qwen-vl-utils does: Pillow's bicubic."""
    height, width = resized(picture.shape[0], picture.shape[1], factor, low, high)
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def sized_frames(frames: np.ndarray, factor: int, low: int, high: int) -> np.ndarray:
    """Uint8 frames (T, H, W, 3) resized as qwen-vl-utils does: torchvision's bicubic, antialiased. Bounds are pixels per frame.

    By the first functional interface, which rounds from float32; the second works on bytes and differs by a grey level."""
    height, width = resized(frames.shape[1], frames.shape[2], factor, low, high)
    tensor = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    found = F.resize(tensor, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)
    return found.permute(0, 2, 3, 1).numpy()


def encode(processor: Any, rows: Sequence[Row], device: torch.device) -> dict[str, Tensor]:
    """The rows through chat template and processor, padded on the right."""
    texts = processor.apply_chat_template([_turn(row) for row in rows], add_generation_prompt=True, tokenize=False)
    media: dict[str, Any] = {}
    if any(row.pictures for row in rows):
        media["images"] = [[Image.fromarray(np.ascontiguousarray(one)) for one in row.pictures] for row in rows]
    videos = [torch.from_numpy(np.array(row.video)).permute(0, 3, 1, 2) for row in rows if row.video is not None]
    if videos:
        media["videos"] = videos
    found = processor(
        text=texts,
        padding=True,
        return_tensors="pt",
        return_mm_token_type_ids=True,
        images_kwargs={"do_resize": False},
        videos_kwargs={"do_resize": False, "do_sample_frames": False},
        **media,
    )
    return {name: value.to(device) for name, value in found.items()}


def _turn(row: Row) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = [{"type": "image"} for _ in row.pictures]
    content += [{"type": "video"}] if row.video is not None else []
    return [{"role": "user", "content": [*content, {"type": "text", "text": row.text}]}]


def places(ids: Tensor, tokens: Sequence[int]) -> Tensor:
    """Where each of `tokens` is in each row of `ids (B, L)`: `(B, K)`. Raises ValueError unless it is there exactly once."""
    found = torch.stack([ids == token for token in tokens], dim=1)  # (B, K, L)
    if not (found.sum(-1) == 1).all():
        raise ValueError("a row does not hold every reward token exactly once")
    return found.int().argmax(-1)


def sequential(ids: Tensor) -> Tensor:
    """Position ids `(3, B, L)`: 0, 1, 2 ... on all three axes, whatever is shown."""
    batch, length = ids.shape
    return torch.arange(length, device=ids.device).expand(3, batch, length)
