"""What a vision-language model is told, one prompt at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt after its chat template and its processor.

    `input_ids (P,)` int64 without padding, image and video placeholders expanded; `kinds (P,)` int64 with 0 for text, 1 for an
    image token and 2 for a video token; `media` are the model's own keyword arguments for this prompt alone, such as
    `pixel_values (patches, d)` with `image_grid_thw (images, 3)`, or nothing for a text prompt. `token_types (P,)` int64 are
    the processor's `token_type_ids`, which say to some models what may look ahead; None where it gives none.
    """

    input_ids: Tensor
    kinds: Tensor
    media: Mapping[str, Tensor]
    token_types: Tensor | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    def seen_through(self, media: Mapping[str, Tensor]) -> EncodedPrompt:
        """The same tokens with other pixels (a view); grids and counts must be the same."""
        assert media.keys() == self.media.keys()
        return replace(self, media=media)

    def without_pixels(self) -> EncodedPrompt:
        """The same prompt for those who have the features of its pictures; grids stay."""
        return replace(self, media={k: v for k, v in self.media.items() if not k.startswith("pixel_values")})
