"""Stable Diffusion 3 and 3.5: an MM-DiT that is told 1000 sigma, two CLIPs and a T5, a VAE with 16 channels."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mmrl.generative.conditioning import Tensors
from mmrl.generative.families.base import Adapter
from mmrl.generative.families.loaded import Loaded
from mmrl.generative.flow import FlowPolicy


class SD3Adapter(Adapter):
    pipeline = "StableDiffusion3Pipeline"
    network_name = "transformer"
    encoder_names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    lora_targets = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    )

    def __init__(self, pipe: Any, dtype: torch.dtype, device: torch.device, max_sequence_length: int = 128) -> None:
        super().__init__(pipe, dtype, device)
        self.max_sequence_length = max_sequence_length

    @property
    def size_unit(self) -> int:
        return int(self.pipe.vae_scale_factor * self.pipe.transformer.config.patch_size)

    @property
    def size_limit(self) -> int | None:
        patches = self.pipe.transformer.config.pos_embed_max_size
        return patches * self.size_unit if patches else None

    def encode_texts(self, texts: list[str]) -> Tensors:
        prompt, _, pooled, _ = self.pipe.encode_prompt(
            prompt=texts,
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        return {"prompt": prompt, "pooled": pooled}

    def predict(self, x: Tensor, timestep: Tensor, cond: Tensors) -> Tensor:
        return self.network(
            hidden_states=self.cast(x),
            timestep=timestep,
            encoder_hidden_states=self.cast(cond["prompt"]),
            pooled_projections=self.cast(cond["pooled"]),
            return_dict=False,
        )[0].float()

    def call_options(self) -> dict[str, Any]:
        return {"max_sequence_length": self.max_sequence_length}


class SD3(Loaded, FlowPolicy):
    """Stable Diffusion 3 or 3.5: `path` is a diffusers folder or hub id."""

    adapter_type: ClassVar[type[Adapter]] = SD3Adapter

    max_sequence_length: int = Field(default=128, ge=1, le=512)
    """T5 tokens of a prompt."""
    t5: bool = True
    """Without it the T5 half of the prompt is zeros, and 5 billion parameters are not loaded."""

    def read_options(self) -> dict[str, Any]:
        return {} if self.t5 else {"text_encoder_3": None, "tokenizer_3": None}

    def adapter_options(self) -> dict[str, Any]:
        return {"max_sequence_length": self.max_sequence_length}
