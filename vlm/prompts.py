"""Prompts -> token ids and pixels, through the model's own chat template and processor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmrl.errors import UserError
from mmrl.media import is_image
from mmrl.rollout import Prompt
from mmrl.seeding import derive_seed
from mmrl.vlm.encoded import EncodedPrompt
from mmrl.vlm.media import (
    FrameRule,
    Media,
    Video,
    bounds_whole_videos,
    frame_size,
    load_media,
    pixels_of,
    resized,
    with_pixels,
)  # fmt: skip
from mmrl.vlm.views import Views

SLOT = re.compile("(<image>|<video>)")
"""Where in a prompt's text its images and videos stand."""

PLACEHOLDERS = ("<|image_pad|>", "<|video_pad|>", "<IMG_CONTEXT>", "<image_soft_token>")
"""What models that are not loaded yet may put where a picture stands."""

TEXT_KEYS = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids", "video_metadata")


@dataclass(frozen=True)
class PromptOptions:
    """What is told beside the prompt: `system` message, `template` around the prompt's text ("{prompt}" stands for it), and
    `chat` variables of the chat template."""

    system: str | None = None
    template: str = "{prompt}"
    chat: Mapping[str, Any] = field(default_factory=dict)
    frames: FrameRule = field(default_factory=FrameRule)
    views: Views = field(default_factory=Views)


class PromptEncoder:
    """One processor with its options; everything is a function of the prompt (and of a view and its seed)."""

    def __init__(self, processor: Any, options: PromptOptions) -> None:
        self.processor, self.options = processor, options
        self.tokenizer = processor.tokenizer
        self.tokens = {
            "image": getattr(processor, "image_token", None),
            "video": getattr(processor, "video_token", None),
        }

    def encode(self, prompt: Prompt, view: str = "original", seed: int = 0) -> EncodedPrompt:
        """The prompt as the model reads it, its media seen through `view`; medium i draws from `(seed, i)`.

        Raises UserError naming the prompt for media that do not fit its text or the model's template.
        """
        media = self.load(prompt)
        plain = self._encode(prompt, media)
        if view == "original" or not media:
            return plain
        seen = self._encode(prompt, self._through(view, seed, media, plain))
        if not torch.equal(seen.input_ids, plain.input_ids):
            raise UserError(
                f"prompt '{prompt.id}': the '{view}' view changes the number of vision tokens of this model"
            )
        return plain.seen_through(seen.media)

    def conversation(
        self, prompt: Prompt, view: str = "original", seed: int = 0
    ) -> tuple[list[dict[str, Any]], list[Media]]:
        """What `encode` reads before any template: the messages, and their media in order, seen through `view`."""
        media = self.load(prompt)
        if view != "original" and media:
            media = self._through(view, seed, media, self._encode(prompt, media))
        return self._messages(prompt, media), media

    def _through(self, view: str, seed: int, media: Sequence[Media], plain: EncodedPrompt) -> list[Media]:
        sizes = self._sizes(plain, media)
        return [
            with_pixels(
                item, self.options.views.see(view, _pixels(item, size), derive_seed("view", view, seed, number))
            )
            for number, (item, size) in enumerate(zip(media, sizes, strict=True))
        ]

    def load(self, prompt: Prompt, pixels: bool = True) -> list[Media]:
        """See `load_media`; frames of videos within the bounds of the options where the processor does not see to that."""
        rule = self.options.frames
        media = load_media(prompt, rule, pixels)
        video = getattr(self.processor, "video_processor", None)
        if (rule.min_pixels is None and rule.max_pixels is None) or video is None or not bounds_whole_videos(video):
            return media
        factor = video.patch_size * video.merge_size

        def bounded(item: Video) -> Media:
            _, height, width, _ = item.frames.shape
            return resized(item, frame_size(height, width, factor, rule))

        return [bounded(item) if isinstance(item, Video) else item for item in media]

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a rendered prompt whose placeholders are expanded."""
        return self.tokenizer(text, add_special_tokens=not self._begins(text)).input_ids

    def _begins(self, text: str) -> bool:
        """Whether the template wrote the token that begins every text, which the tokenizer would write once more."""
        bos = self.tokenizer.bos_token
        return bool(bos) and text.startswith(bos)

    def answer(self, text: str, eos_id: int) -> Tensor:
        """Token ids `(T,)` int64 of a demonstrated answer, its end included."""
        return torch.tensor([*self.tokenizer(text, add_special_tokens=False).input_ids, eos_id])

    def decode(self, tokens: Tensor) -> str:
        """The text of answer tokens, without special tokens."""
        return self.tokenizer.decode(tokens.tolist(), skip_special_tokens=True)

    def render(self, prompt: Prompt, media: Sequence[Media]) -> str:
        """The chat template's text, one placeholder of the model per medium."""
        rendered: str = self.processor.apply_chat_template(
            self._messages(prompt, media), tokenize=False, add_generation_prompt=True, **self.options.chat
        )
        wanted = {"video": sum(isinstance(item, Video) for item in media)}
        wanted["image"] = len(media) - wanted["video"]
        for kind, token in self.tokens.items():
            if wanted[kind] and not token:
                raise UserError(f"prompt '{prompt.id}' has {kind}s, and {type(self.processor).__name__} takes none")
            if token and rendered.count(token) != wanted[kind]:
                raise UserError(
                    f"prompt '{prompt.id}' has {wanted[kind]} {kind}s, but the model's chat template writes "
                    f"{rendered.count(token)} {kind} placeholders ({token}); the template does not fit this model"
                )
        return rendered

    def check(self, prompt: Prompt) -> None:
        """Raises UserError for a text that `encode` would refuse. No medium is read."""
        kinds = ["image" if is_image(item) else "video" for item in prompt.media]
        self._check(prompt, kinds)

    def _check(self, prompt: Prompt, kinds: Sequence[str]) -> str:
        text = self.options.template.replace("{prompt}", prompt.text)
        check_text(prompt.id, text, kinds, [token for token in self.tokens.values() if token])
        return text

    def _messages(self, prompt: Prompt, media: Sequence[Media]) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = [{"role": "user", "content": self._content(prompt, media)}]
        if self.options.system is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": self.options.system}]})
        return messages

    def _content(self, prompt: Prompt, media: Sequence[Media]) -> list[dict[str, str]]:
        kinds = ["video" if isinstance(item, Video) else "image" for item in media]
        parts = SLOT.split(self._check(prompt, kinds))
        if len(parts) == 1:
            return [*({"type": kind} for kind in kinds), {"type": "text", "text": parts[0]}]
        content = [{"type": p[1:-1]} if i % 2 else {"type": "text", "text": p} for i, p in enumerate(parts)]
        return [part for part in content if part.get("text") != ""]

    def _encode(self, prompt: Prompt, media: Sequence[Media]) -> EncodedPrompt:
        rendered = self.render(prompt, media)
        images = [Image.fromarray(item) for item in media if not isinstance(item, Video)]
        videos = [item for item in media if isinstance(item, Video)]
        options: dict[str, Any] = {"images": images} if images else {}
        if videos:
            options |= {"videos": [v.frames for v in videos], "video_metadata": [metadata(v) for v in videos],
                        "do_sample_frames": False}  # fmt: skip
        if self._begins(rendered):
            options["add_special_tokens"] = False
        try:
            found = self.processor(text=[rendered], return_tensors="pt", **options)
        except ValueError as error:
            raise UserError(f"prompt '{prompt.id}': {type(self.processor).__name__} refuses it: {error}") from error
        ids = found["input_ids"][0]
        tensors = {key: torch.as_tensor(value) for key, value in found.items() if key not in TEXT_KEYS}
        types = found.get("token_type_ids")
        return EncodedPrompt(
            ids, self._kinds(ids, found), tensors, None if types is None else torch.as_tensor(types)[0].long()
        )

    def _kinds(self, ids: Tensor, found: Mapping[str, Any]) -> Tensor:
        if "mm_token_type_ids" in found:
            return torch.as_tensor(found["mm_token_type_ids"])[0].long()
        kinds = torch.zeros_like(ids)
        for kind, name in ((1, "image_token_id"), (2, "video_token_id")):
            # `..._ids` where what a picture becomes is not what stands for it in a text (Gemma 3)
            listed = getattr(self.processor, f"{name}s", None) or [getattr(self.processor, name, None)]
            for token in listed:
                if token is not None:
                    kinds[ids == token] = kind
        return kinds

    def _sizes(self, encoded: EncodedPrompt, media: Sequence[Media]) -> list[tuple[int, int] | None]:
        """Height and width at which the model sees every medium, None where only its processor knows."""
        grids = {kind: iter(encoded.media.get(f"{kind}_grid_thw", ())) for kind in ("image", "video")}
        patches = {"image": getattr(self.processor.image_processor, "patch_size", None),
                   "video": getattr(getattr(self.processor, "video_processor", None), "patch_size", None)}  # fmt: skip
        sizes: list[tuple[int, int] | None] = []
        for item in media:
            kind = "video" if isinstance(item, Video) else "image"
            grid, patch = next(grids[kind], None), patches[kind]
            if grid is not None and isinstance(patch, int):
                sizes.append((int(grid[1]) * patch, int(grid[2]) * patch))
            else:
                sizes.append(None)
        return sizes


def check_text(id: str, text: str, kinds: Sequence[str], placeholders: Iterable[str]) -> None:
    """Raises UserError where the `text` of prompt `id`, the template around it, says otherwise where its media stand than by one
    <image> or <video> for each of their `kinds` ("image", "video"), or none at all."""
    parts = SLOT.split(text)
    for token in placeholders:
        if any(token in part for part in parts[::2]):
            raise UserError(
                f"prompt '{id}': its text holds a model's own placeholder {token}; write <image> or <video>"
            )
    slots = [slot[1:-1] for slot in parts[1::2]]
    if slots and sorted(slots) != sorted(kinds):
        raise UserError(
            f"prompt '{id}': its text has {slots.count('image')} <image> and {slots.count('video')} <video>, but it "
            f"comes with {kinds.count('image')} images and {kinds.count('video')} videos; write one for each, or none"
        )


def _pixels(item: Media, size: tuple[int, int] | None) -> np.ndarray:
    return pixels_of(item if size is None else resized(item, size))


def metadata(video: Video) -> Any:
    """What a processor is told about a video beside its frames."""
    from transformers.video_utils import VideoMetadata

    height, width = video.frames.shape[1:3]
    return VideoMetadata(
        total_num_frames=video.total, fps=video.fps, frames_indices=list(video.indices), height=height, width=width,
        duration=video.total / video.fps,
    )  # fmt: skip
