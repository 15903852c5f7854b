"""FLUX.1: an MM-DiT that is told sigma and, where it is guidance-distilled, a guidance; CLIP and T5; 16 latent channels in 2x2 patches. Kontext
edits: the latents of the source picture stand behind those of the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from mmrl.errors import UserError
from mmrl.generative.conditioning import Ask, Size, Tensors, by_kind, stacked
from mmrl.generative.families.base import Adapter
from mmrl.generative.families.loaded import Loaded
from mmrl.generative.flow import FlowPolicy
from mmrl.generative.packing import image_ids, pack_latents, unpack_latents


class FluxAdapter(Adapter):
    """T5 tokens are padded to one length and all seen, as the network has no mask."""

    pipeline = "FluxPipeline"
    network_name = "transformer"
    encoder_names = ("text_encoder", "text_encoder_2")
    lora_targets = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    )
    distilled = True

    def __init__(self, pipe: Any, dtype: torch.dtype, device: torch.device, max_sequence_length: int = 512) -> None:
        super().__init__(pipe, dtype, device)
        self.max_sequence_length = max_sequence_length

    @property
    def default_size(self) -> int:
        return int(self.pipe.default_sample_size * self.vae_scale)

    @property
    def size_unit(self) -> int:
        return 2 * self.vae_scale

    @property
    def latent_channels(self) -> int:
        return int(self.network.config.in_channels) // 4

    def sigmas(self, num_steps: int) -> list[float] | None:
        found: list[float] = np.linspace(1.0, 1 / num_steps, num_steps).tolist()
        return None if self.pipe.scheduler.config.get("use_flow_sigmas") else found

    def facts(self, plan: Any, rows: int) -> Tensors:
        """Raises UserError for a guidance of a checkpoint that is not told one."""
        if self.network.config.guidance_embeds:
            return super().facts(plan, rows)
        if plan.guidance_scale > 1:
            raise UserError(f"this checkpoint knows no guidance: guidance_scale must be 1, got {plan.guidance_scale}")
        return {}

    def encode_texts(self, texts: list[str]) -> Tensors:
        prompt, pooled, _ = self.pipe.encode_prompt(
            prompt=texts, prompt_2=None, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return {"prompt": prompt, "pooled": pooled}

    def predict(self, x: Tensor, timestep: Tensor, cond: Tensors) -> Tensor:
        return self.run(x, timestep, cond, None, None)

    def run(
        self, x: Tensor, timestep: Tensor, cond: Tensors, source: Tensor | None, source_ids: Tensor | None
    ) -> Tensor:
        """The output for `x (B, C, h, w)` with the packed tokens `source (B, t, 4C)` at `source_ids (t, 3)` behind them."""
        height, width = x.shape[-2:]
        tokens, ids = pack_latents(x), image_ids(height, width)
        count = tokens.shape[1]
        if source is not None and source_ids is not None:
            tokens, ids = torch.cat([tokens, source.to(tokens.dtype)], 1), torch.cat([ids, source_ids])
        prompt = self.cast(cond["prompt"])
        out = self.network(
            hidden_states=self.cast(tokens),
            timestep=self.cast(timestep) / 1000,
            guidance=cond.get("guidance"),
            pooled_projections=self.cast(cond["pooled"]),
            encoder_hidden_states=prompt,
            txt_ids=torch.zeros(prompt.shape[1], 3, device=x.device, dtype=prompt.dtype),
            img_ids=self.cast(ids.to(x.device)),
            return_dict=False,
        )[0]
        return unpack_latents(out[:, :count].float(), height, width)

    def call_options(self) -> dict[str, Any]:
        return {"max_sequence_length": self.max_sequence_length}


class KontextAdapter(FluxAdapter):
    """One source picture per prompt, brought to the nearest of Kontext's resolutions (or with `resize` off to multiples of 16 pixels)."""

    pipeline = "FluxKontextPipeline"
    media_role = "edit"

    def __init__(
        self,
        pipe: Any,
        dtype: torch.dtype,
        device: torch.device,
        max_sequence_length: int = 512,
        resize: bool = True,
    ) -> None:
        super().__init__(pipe, dtype, device, max_sequence_length)
        self.resize = resize

    @torch.no_grad()
    def encode_media(self, asks: Sequence[Ask]) -> Tensors:
        """`source (B, t, 4C)` packed latents, padded behind, and `source_size (B, 2)`, their rows and columns."""
        found: list[Tensors] = []
        for ask in asks:
            if len(ask.media) != 1:
                raise UserError(f"Kontext edits one picture per prompt, got {len(ask.media)}")
            image = Image.fromarray(ask.media[0].array)
            height, width = self._source_size(image)
            processor = self.pipe.image_processor
            pixels = processor.preprocess(processor.resize(image, height, width), height, width)
            z = self.from_vae(self.vae.encode(pixels.to(self.device, torch.float32)).latent_dist.mode())
            found.append({"source": pack_latents(z)[0], "source_size": torch.tensor(z.shape[-2:], device=self.device)})
        return {name: stacked([one[name] for one in found]) for name in found[0]}

    def predict(self, x: Tensor, timestep: Tensor, cond: Tensors) -> Tensor:
        sizes = cond["source_size"]

        def some(rows: Tensor) -> Tensor:
            height, width = sizes[rows[0]].tolist()
            told = {name: value[rows] for name, value in cond.items()}
            ids = image_ids(height, width)
            ids[:, 0] = 1
            return self.run(x[rows], timestep[rows], told, told["source"][:, : height * width // 4], ids)

        return by_kind(sizes, some)

    def _source_size(self, image: Image.Image) -> tuple[int, int]:
        from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS

        height, width = self.pipe.image_processor.get_default_height_width(image)
        if self.resize:
            ratio = width / height
            _, width, height = min((abs(ratio - w / h), w, h) for w, h in PREFERRED_KONTEXT_RESOLUTIONS)
        unit = self.size_unit
        return height // unit * unit, width // unit * unit

    def call_size(self, size: Size) -> dict[str, Any]:
        return {**super().call_size(size), "max_area": size.height * size.width}  # else it is scaled to a megapixel

    def call_options(self) -> dict[str, Any]:
        return {**super().call_options(), "_auto_resize": self.resize}


class Flux(Loaded, FlowPolicy):
    """FLUX.1 (black-forest-labs/FLUX.1-dev, FLUX.1-schnell): `path` is a diffusers folder or hub id. dev is guidance-distilled: `guidance_scale`
    3.5 is told, at no cost; schnell has no guidance. 1024 pixels; dev 28 steps, schnell 4. Licences: dev non-commercial, schnell
    Apache-2.0."""

    adapter_type: ClassVar[type[Adapter]] = FluxAdapter

    max_sequence_length: int = Field(default=512, ge=1, le=512)
    """T5 tokens of a prompt (schnell: 256)."""

    def adapter_options(self) -> dict[str, Any]:
        return {"max_sequence_length": self.max_sequence_length}


class FluxKontext(Flux):
    """FLUX.1 Kontext (black-forest-labs/FLUX.1-Kontext-dev; non-commercial): edits the picture of the prompt as its text says. Guidance 2.5, 28 steps."""

    adapter_type: ClassVar[type[Adapter]] = KontextAdapter

    resize: bool = True
    """Bring source pictures to the nearest resolution that Kontext was trained on (about one megapixel)."""

    def adapter_options(self) -> dict[str, Any]:
        return {**super().adapter_options(), "resize": self.resize}
