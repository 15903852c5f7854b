"""Qwen-Image-Edit: Qwen-Image with the pictures of a prompt before the eyes of its text encoder and, as tokens, behind the noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from mmrl.errors import UserError
from mmrl.generative.conditioning import Ask, Tensors, by_kind, stacked
from mmrl.generative.families.base import Adapter
from mmrl.generative.families.loaded import Loaded
from mmrl.generative.families.qwen_image import QwenImageAdapter, full
from mmrl.generative.flow import FlowPolicy
from mmrl.generative.packing import pack_latents


class QwenEditAdapter(QwenImageAdapter):
    """One picture. It is brought to about 1024x1024 pixels in its own shape, whatever the size of what is made. Its pipeline does not
    shorten the text."""

    pipeline = "QwenImageEditPipeline"
    media_role = "edit"

    @torch.no_grad()
    def sources(self, pictures: Sequence[Image.Image]) -> tuple[Any, list[Tensor]]:
        """What the text encoder sees of the pictures, and what the VAE does, each `(1, 3, 1, h, w)`."""
        from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as own

        if len(pictures) != 1:
            raise UserError(f"this model edits 1 picture, but the prompt has {len(pictures)}")
        picture, processor = pictures[0], self.pipe.image_processor
        width, height, _ = own.calculate_dimensions(1024 * 1024, picture.width / picture.height)
        shown = processor.resize(picture, height, width)
        return shown, [processor.preprocess(shown, height, width).unsqueeze(2)]

    def encode(self, asks: Sequence[Ask]) -> Tensors:
        """`prompt (B, L, D)`, `prompt_mask (B, L)`, `source (B, t, 4C)` float32, the packed latents of the pictures, and their rows and
        columns `source_shape (B, K, 2)`; all padded behind."""
        found = [self._encode(ask) for ask in asks]
        return {name: stacked([one[name] for one in found]) for name in found[0]}

    def predict(self, x: Tensor, timestep: Tensor, cond: Tensors) -> Tensor:
        def some(rows: Tensor) -> Tensor:
            shapes = [(1, h, w) for h, w in cond["source_shape"][rows[0]].tolist() if h]
            told = {name: cond[name][rows] for name in ("prompt", "prompt_mask")}
            source = cond["source"][rows, : sum(h * w for _, h, w in shapes)]
            return self.run(x[rows], timestep[rows], told, source, shapes)

        return by_kind(cond["source_shape"], some)

    def _encode(self, ask: Ask) -> Tensors:
        shown, pixels = self.sources([Image.fromarray(picture.array) for picture in ask.media])
        prompt, mask = self.pipe.encode_prompt([ask.text], image=shown, device=self.device)
        with torch.no_grad():
            latents = [self.from_vae(self.encode_pixels(one[:, :, 0].to(self.device))) for one in pixels]
        shapes = torch.tensor([[one.shape[2] // 2, one.shape[3] // 2] for one in latents], device=self.device)
        source = torch.cat([pack_latents(one)[0] for one in latents])
        return {"prompt": prompt[0], "prompt_mask": full(prompt, mask)[0], "source": source, "source_shape": shapes}

    def call_options(self) -> dict[str, Any]:
        return {}


class QwenEditPlusAdapter(QwenEditAdapter):
    """One or more pictures; the text encoder sees them smaller than the VAE does."""

    pipeline = "QwenImageEditPlusPipeline"

    @torch.no_grad()
    def sources(self, pictures: Sequence[Image.Image]) -> tuple[Any, list[Tensor]]:
        from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as own

        shown, pixels, processor = [], [], self.pipe.image_processor
        for picture in pictures:
            ratio = picture.width / picture.height
            width, height = own.calculate_dimensions(own.CONDITION_IMAGE_SIZE, ratio)
            shown.append(processor.resize(picture, height, width))
            width, height = own.calculate_dimensions(own.VAE_IMAGE_SIZE, ratio)
            pixels.append(processor.preprocess(picture, height, width).unsqueeze(2))
        return shown, pixels


class QwenEdit(Loaded, FlowPolicy):
    """Qwen/Qwen-Image-Edit: edits the one picture of a prompt; 50 steps, guidance 4. Apache 2.0."""

    adapter_type: ClassVar[type[Adapter]] = QwenEditAdapter


class QwenEditPlus(Loaded, FlowPolicy):
    """Qwen/Qwen-Image-Edit-2509, Qwen/Qwen-Image-Edit-2511: edits one or more pictures; 40 steps, guidance 4. Apache 2.0."""

    adapter_type: ClassVar[type[Adapter]] = QwenEditPlusAdapter
