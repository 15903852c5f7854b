"""The vision-language policies that a config names: which weights, which processor. Heavy imports wait for `load`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from pydantic import PositiveInt, model_validator

from mmrl.errors import UserError
from mmrl.vlm.media import FrameRule, bounds_whole_videos
from mmrl.vlm.policy import DType, VlmPolicy


class Vlm(VlmPolicy):
    """Any image-text-to-text model of transformers: `path` is a folder or hub id. Qwen2-VL, Qwen2.5-VL and Qwen3-VL are
    read and scored in a packed way, which is much faster."""

    path: str
    revision: str | None = None
    attention: str = "sdpa"
    """The model's attention: sdpa, eager, flash_attention_2 ..."""
    min_pixels: PositiveInt | None = None
    max_pixels: PositiveInt | None = None
    """Bounds of the size of a picture and of every frame of a video after resizing, in pixels; default: the processor's own.
    What it allows all frames of a video together stays as it is, and may make them smaller."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Only for sources that you trust."""

    @model_validator(mode="after")
    def _bounds_fit(self) -> Vlm:
        check_bounds(self.min_pixels, self.max_pixels)
        return self

    @property
    def frame_rule(self) -> FrameRule:
        return replace(super().frame_rule, min_pixels=self.min_pixels, max_pixels=self.max_pixels)

    def make_model(self, device: torch.device) -> tuple[Any, Any]:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        source: dict[str, Any] = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        try:
            processor: Any = AutoProcessor.from_pretrained(self.path, **source)
            model: Any = AutoModelForImageTextToText.from_pretrained(
                self.path, dtype=getattr(torch, self.dtype), attn_implementation=self.attention, **source
            )
        except (OSError, ValueError, ImportError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"cannot load a vision-language model from '{self.path}': {reason}") from error
        if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
            raise UserError(f"'{self.path}' has a {type(processor).__name__}; expected a processor of text and images")
        if processor.chat_template is None and processor.tokenizer.chat_template is None:
            raise UserError(f"'{self.path}' has no chat template; use the instruction-tuned variant of the model")
        set_bounds(processor, self.min_pixels, self.max_pixels)
        return model.to(device), processor


class TinyQwen3VL(VlmPolicy):
    """An untrained Qwen3-VL of 1.3 million parameters for pictures of about 56 x 56, made on demand from a seed."""

    seed: int = 0
    dtype: DType = "float32"
    min_pixels: PositiveInt = 28 * 28
    max_pixels: PositiveInt = 112 * 112
    """Bounds of a picture's size after resizing, in pixels; every 28 x 28 of them are one token."""

    @model_validator(mode="after")
    def _bounds_fit(self) -> TinyQwen3VL:
        check_bounds(self.min_pixels, self.max_pixels)
        return self

    def make_model(self, device: torch.device) -> tuple[Any, Any]:
        from mmrl.vlm.tiny import tiny_qwen3vl

        model, processor = tiny_qwen3vl(self.seed, self.min_pixels, self.max_pixels)
        return model.to(device, getattr(torch, self.dtype)), processor


def check_bounds(least: int | None, most: int | None) -> None:
    """Raises ValueError when no picture can be between the two."""
    if least is not None and most is not None and least > most:
        raise ValueError(f"min_pixels {least} is more than max_pixels {most}")


def set_bounds(processor: Any, least: int | None, most: int | None) -> None:
    """Bound the number of pixels that a processor resizes pictures to, and frames of videos where it bounds each of them
    (where it bounds all of a video's together, `FrameRule` does it). Raises UserError when it sizes pictures otherwise."""
    if least is None and most is None:
        return
    own = processor.image_processor
    size = dict(own.size)
    if {key for key, value in size.items() if value is not None} != {"shortest_edge", "longest_edge"} or not hasattr(
        own, "merge_size"
    ):
        raise UserError(
            f"min_pixels and max_pixels do not apply to {type(own).__name__}, which does not size pictures by their number of "
            "pixels; leave them out"
        )
    _resize(own, least, most)
    video = getattr(processor, "video_processor", None)
    if video is not None and not bounds_whole_videos(video):
        _resize(video, least, most)
    elif video is not None and most is not None and dict(video.size).get("shortest_edge"):
        # else two small frames would be enlarged beyond the bound until both together have the least of a video
        video.size = type(video.size)(
            **{**dict(video.size), "shortest_edge": min(video.size["shortest_edge"], most // 2)}
        )


def _resize(processor: Any, least: int | None, most: int | None) -> None:
    size = processor.size
    found = {"shortest_edge": least or size["shortest_edge"], "longest_edge": most or size["longest_edge"]}
    if found["shortest_edge"] > found["longest_edge"]:
        kind = "frames" if "Video" in type(processor).__name__ else "pictures"
        raise UserError(
            f"min_pixels {found['shortest_edge']} is more than max_pixels {found['longest_edge']} (of the processor, for {kind})"
        )
    processor.size = type(size)(**found)
