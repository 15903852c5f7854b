"""How many tokens a prompt has: from the sizes of its pictures where the processor can tell, without decoding them."""

from __future__ import annotations

import re

import torch

from mmrl.errors import UserError
from mmrl.rollout import Prompt
from mmrl.vlm.media import Video
from mmrl.vlm.prompts import PromptEncoder, metadata

COUNTED = ("Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor")
"""Processors whose text depends on the number of patches and, of a video, of frames alone."""


def prompt_length(encoder: PromptEncoder, prompt: Prompt) -> int:
    """As many tokens as `encoder.encode(prompt)` has. Raises UserError as it does, but for pixels that are broken."""
    if not _counts(encoder.processor):
        return len(encoder.encode(prompt))
    processor = encoder.processor
    media = encoder.load(prompt, pixels=False)
    text = encoder.render(prompt, media)
    videos = [item for item in media if isinstance(item, Video)]
    sizes = [item.shape[:2] for item in media if not isinstance(item, Video)]
    try:
        # a picture that lies on its side has as many patches
        patches = [processor.image_processor.get_number_of_image_patches(*size, {}) for size in sizes]
        volumes = [processor.video_processor.get_num_of_video_patches(*v.frames.shape[:3], {}) for v in videos]
    except ValueError as error:
        raise UserError(f"prompt '{prompt.id}': {type(processor).__name__} refuses it: {error}") from error
    images = {"image_grid_thw": torch.tensor([[1, 1, count] for count in patches])}
    times = [-(-len(v.frames) // processor.video_processor.temporal_patch_size) for v in videos]
    grids = [[time, 1, count // time] for time, count in zip(times, volumes, strict=True)]
    clips = {"video_grid_thw": torch.tensor(grids), "video_metadata": [metadata(video) for video in videos]}
    written = {
        processor.image_token: iter([processor.replace_image_token(images, i) for i in range(len(sizes))]),
        processor.video_token: iter([processor.replace_video_token(clips, i) for i in range(len(videos))]),
    }
    places = re.compile("|".join(map(re.escape, written)))
    return len(encoder.text_ids(places.sub(lambda place: next(written[place.group()]), text)))


def _counts(processor: object) -> bool:
    if type(processor).__name__ not in COUNTED or not hasattr(processor, "replace_video_token"):
        return False
    video = processor.video_processor  # type: ignore[attr-defined]
    # Qwen2-VL's count does not know this option
    return "Qwen3" in type(video).__name__ or not getattr(video, "cap_pixels_per_frame", False)
