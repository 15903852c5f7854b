"""FLUX.2: an MM-DiT that is told sigma and, where it is guidance-distilled, a guidance; one language model; 32 latent channels, of which the
network and the noise see 2x2 patches. Pictures of a prompt stand behind the noise as tokens, each at a time of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from mmrl.errors import UserError
from mmrl.generative.conditioning import Ask, Picture, Size, Tensors, by_kind, stacked
from mmrl.generative.families.base import Adapter
from mmrl.generative.families.loaded import Loaded
from mmrl.generative.flow import FlowPolicy

LARGEST_SOURCE = 1024 * 1024
"""Pixels above which the pipeline scales a source picture down."""


class Flux2Adapter(Adapter):
    """Latents are the normalised patches `(B, 4C, h, w)`. Text is padded to one length and all seen, as the network has no mask."""

    pipeline = "Flux2Pipeline"
    network_name = "transformer"
    encoder_names = ("text_encoder",)
    lora_targets = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        *("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out"),
        *("attn.to_qkv_mlp_proj", "attn.to_out"),
    )
    distilled = True

    def __init__(self, pipe: Any, dtype: torch.dtype, device: torch.device, max_sequence_length: int = 512) -> None:
        super().__init__(pipe, dtype, device)
        self.max_sequence_length = max_sequence_length

    @property
    def default_size(self) -> int:
        return int(self.pipe.default_sample_size * self.pipe.vae_scale_factor)

    @property
    def vae_scale(self) -> int:
        return 2 * int(self.pipe.vae_scale_factor)

    def mu(self, size: Size, num_steps: int) -> float:
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        return compute_empirical_mu(self.tokens(size), num_steps)

    def sigmas(self, num_steps: int) -> list[float] | None:
        found: list[float] = np.linspace(1.0, 1 / num_steps, num_steps).tolist()
        return None if self.pipe.scheduler.config.get("use_flow_sigmas") else found

    def encode_texts(self, texts: list[str]) -> Tensors:
        prompt, _ = self.pipe.encode_prompt(texts, device=self.device, max_sequence_length=self.max_sequence_length)
        return {"prompt": prompt}

    @torch.no_grad()
    def encode_media(self, asks: Sequence[Ask]) -> Tensors:
        """`source (B, t, 4C)` float32 and `source_ids (B, t, 4)` int64, the tokens of all pictures of a prompt and where they stand, both
        padded behind with zeros (a picture stands at time 10 or later)."""
        if self.media_role is None:
            return {}
        found = [self._sources(ask.media) for ask in asks]
        return {name: stacked([one[name] for one in found]) for name in found[0]}

    def predict(self, x: Tensor, timestep: Tensor, cond: Tensors) -> Tensor:
        if self.media_role is None:
            return self.run(x, timestep, cond, None)
        ids = cond["source_ids"]

        def some(rows: Tensor) -> Tensor:
            own = ids[rows[0]]
            told = {name: value[rows] for name, value in cond.items()}
            return self.run(x[rows], timestep[rows], told, own[own[:, 0] > 0])

        return by_kind(ids.flatten(1), some)

    def run(self, x: Tensor, timestep: Tensor, cond: Tensors, source_ids: Tensor | None) -> Tensor:
        """The output for `x (B, 4C, h, w)`, with the tokens of pictures at `source_ids (t, 4)` behind them."""
        prompt, ids = self.cast(cond["prompt"]), self.pipe._prepare_latent_ids(x[:1]).to(x.device)
        tokens = self.pipe._pack_latents(x)
        count = tokens.shape[1]
        if source_ids is not None:
            tokens = torch.cat([tokens, cond["source"][:, : len(source_ids)]], 1)
            ids = torch.cat([ids, source_ids[None]], 1)
        out = self.network(
            hidden_states=self.cast(tokens),
            timestep=self.cast(timestep) / 1000,
            guidance=cond.get("guidance"),
            encoder_hidden_states=prompt,
            txt_ids=self.pipe._prepare_text_ids(prompt[:1]).to(x.device),
            img_ids=ids,
            return_dict=False,
        )[0]
        return out[:, :count].float().mT.reshape(x.shape)

    def to_vae(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics()
        z: Tensor = self.pipe._unpatchify_latents(latents.float() * std + mean)
        return z

    def from_vae(self, z: Tensor) -> Tensor:
        mean, std = self._statistics()
        latents: Tensor = (self.pipe._patchify_latents(z) - mean) / std
        return latents

    def call_options(self) -> dict[str, Any]:
        return {"max_sequence_length": self.max_sequence_length}

    def _statistics(self) -> tuple[Tensor, Tensor]:
        norm = self.vae.bn
        mean, var = (value.float().view(1, -1, 1, 1) for value in (norm.running_mean, norm.running_var))
        return mean, (var + self.vae.config.batch_norm_eps).sqrt()

    def _sources(self, pictures: Sequence[Picture]) -> Tensors:
        images = [self._source(Image.fromarray(picture.array)) for picture in pictures]
        source, ids = self.pipe.prepare_image_latents(images, 1, None, self.device, torch.float32)
        return {"source": source[0], "source_ids": ids[0]}

    def _source(self, image: Image.Image) -> Tensor:
        """A picture as the VAE takes it, `(1, 3, h, w)`: at most a megapixel, cropped to multiples of 16 pixels."""
        processor, unit = self.pipe.image_processor, self.size_unit
        try:
            processor.check_image_input(image)
        except ValueError as error:
            raise UserError(f"a source picture does not fit this model: {error}") from None
        image = processor._resize_if_exceeds_area(image, LARGEST_SOURCE)
        height, width = (side // unit * unit for side in (image.height, image.width))
        pixels: Tensor = processor.preprocess(image, height=height, width=width, resize_mode="crop")
        return pixels


class Flux2EditAdapter(Flux2Adapter):
    media_role = "edit"


class KleinAdapter(Flux2Adapter):
    """Guidance is a second pass with the empty prompt; a step-distilled checkpoint takes none."""

    pipeline = "Flux2KleinPipeline"
    distilled = False

    def facts(self, plan: Any, rows: int) -> Tensors:
        """Nothing. Raises UserError for a guidance that the pipeline does not take."""
        if plan.guidance_scale > 1 and self.pipe.config.is_distilled:
            raise UserError(f"this checkpoint knows no guidance: guidance_scale must be 1, got {plan.guidance_scale}")
        if plan.guidance_scale > 1 and plan.negative_prompt:
            raise UserError("guidance of FLUX.2 klein moves away from the empty prompt: leave negative_prompt out")
        return {}


class KleinEditAdapter(KleinAdapter):
    media_role = "edit"


class Flux2(Loaded, FlowPolicy):
    """FLUX.2 (black-forest-labs/FLUX.2-dev; non-commercial): `path` is a diffusers folder or hub id. Guidance-distilled: `guidance_scale` 4 is told,
    at no cost. 1024 pixels, 50 steps."""

    adapter_type: ClassVar[type[Adapter]] = Flux2Adapter

    max_sequence_length: int = Field(default=512, ge=1, le=512)
    """Text tokens of a prompt with its instruction, shorter ones being padded."""

    def adapter_options(self) -> dict[str, Any]:
        return {"max_sequence_length": self.max_sequence_length}


class Flux2Edit(Flux2):
    """FLUX.2 with one or more pictures beside every prompt, which it edits or combines."""

    adapter_type: ClassVar[type[Adapter]] = Flux2EditAdapter


class Flux2Klein(Flux2):
    """FLUX.2 klein: FLUX.2-klein-4B (Apache 2.0) and -9B (non-commercial) of black-forest-labs in 4 steps without guidance;
    FLUX.2-klein-base-4B and -base-9B in 50 steps with guidance 4."""

    adapter_type: ClassVar[type[Adapter]] = KleinAdapter


class Flux2KleinEdit(Flux2Klein):
    """FLUX.2 klein with one or more pictures beside every prompt."""

    adapter_type: ClassVar[type[Adapter]] = KleinEditAdapter
