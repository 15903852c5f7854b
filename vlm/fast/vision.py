"""The vision tower, once for all prompts of a call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import UserError
from mmrl.vlm.checkpointing import checkpointed
from mmrl.vlm.encoded import EncodedPrompt
from mmrl.vlm.fast.parts import Parts, parts
from mmrl.vlm.payload import batches

MEDIA = ((1, "pixel_values", "image_grid_thw", "image"), (2, "pixel_values_videos", "video_grid_thw", "video"))
"""Kind of token, and the model's names of pixels and grids."""

MOST_PATCHES = 32_768
"""The tower reads at most so many patches at a time (or one picture or video) when no gradient is wanted."""


@dataclass(frozen=True)
class Vision:
    """What the tower saw of one prompt: `embeds (v, h)` in the order of the prompt's v vision tokens, and per deepstack level
    the features `(v, h)` that the decoder adds after its first layers. v is 0 for a text prompt."""

    embeds: Tensor
    deepstack: tuple[Tensor, ...]

    def detach(self) -> Vision:
        """The same features without gradient."""
        return Vision(self.embeds.detach(), tuple(level.detach() for level in self.deepstack))


def encode_vision(model: Any, prompts: Sequence[EncodedPrompt]) -> list[Vision]:
    """Run the tower over the images and videos of all `prompts` together, and split what it gives per prompt.

    Gradient flows to the tower unless under `torch.no_grad()`, where it runs over `MOST_PATCHES` at a time; pixels may be on
    the CPU. Raises UserError when a prompt has not as many vision tokens as its pictures give.
    """
    part = parts(model)
    merge = part.core.visual.spatial_merge_size**2
    pixels: list[Tensor] = []
    grids: list[Tensor] = []
    counts: list[int] = []
    for number, prompt in enumerate(prompts):
        for kind, values, grid, name in MEDIA:
            tokens = int((prompt.kinds == kind).sum())
            found = int(prompt.media[grid].prod(-1).sum()) // merge if values in prompt.media else 0
            if tokens != found:
                raise UserError(
                    f"prompt {number} has {tokens} {name} tokens, but its {name}s give {found}; "
                    "was it truncated, or encoded with other media?"
                )
            if found:
                own = prompt.media[grid]
                pixels += prompt.media[values].split(own.prod(-1).tolist())
                grids += own.split(1)
            counts.append(found)
    if not pixels:
        return [_nothing(part)] * len(prompts)
    sizes = [len(own) for own in pixels]
    together = [range(len(sizes))] if torch.is_grad_enabled() else batches(sizes, MOST_PATCHES)
    pieces = [_tower(part, pixels[some.start : some.stop], grids[some.start : some.stop]) for some in together]
    split = [torch.cat(level).split(counts) for level in zip(*pieces, strict=True)]
    return [_in_order(prompt, [(s[2 * i], s[2 * i + 1]) for s in split]) for i, prompt in enumerate(prompts)]


def _tower(part: Parts, pixels: list[Tensor], grids: list[Tensor]) -> list[Tensor]:
    """What the language model gets of some pictures, and the features per deepstack level."""
    tower = part.core.visual
    with checkpointed(tower):
        out = tower(
            torch.cat(pixels).to(part.device, tower.dtype), grid_thw=torch.cat(grids).to(part.device), return_dict=True
        )
    return [out.pooler_output, *(getattr(out, "deepstack_features", None) or ())]


def _nothing(part: Parts) -> Vision:
    empty = part.decoder.embed_tokens.weight.new_zeros(0, part.hidden)
    return Vision(empty, (empty,) * part.deepstack)


def _in_order(prompt: EncodedPrompt, levels: list[tuple[Tensor, Tensor]]) -> Vision:
    """Image and video features, each in their own order, mixed as the prompt's tokens are."""
    kinds = prompt.kinds[prompt.kinds > 0]
    if kinds.unique().numel() > 1:
        order = torch.argsort(torch.argsort(kinds, stable=True)).to(levels[0][0].device)
        mixed = [torch.cat(level)[order] for level in levels]
    else:
        mixed = [image if len(image) else video for image, video in levels]
    return Vision(mixed[0], tuple(mixed[1:]))
