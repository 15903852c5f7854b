"""SANA: a transformer of linear attention that is told 1000 sigma, a Gemma 2 behind an instruction, a VAE of 32 pixels per latent."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mmrl.generative.conditioning import Ask, Tensors
from mmrl.generative.families.base import Adapter
from mmrl.generative.families.loaded import Loaded
from mmrl.generative.flow import FlowPolicy


class SanaAdapter(Adapter):
    """The pipeline puts its instruction (`complex_human_instruction`) before prompts, not before what guidance moves away from."""

    pipeline = "SanaPipeline"
    network_name = "transformer"
    encoder_names = ("text_encoder",)
    lora_targets = tuple(
        f"{attn}.{layer}" for attn in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0")
    )

    def __init__(self, pipe: Any, dtype: torch.dtype, device: torch.device, max_sequence_length: int = 300) -> None:
        super().__init__(pipe, dtype, device)
        self.max_sequence_length = max_sequence_length
        self.instruction: list[str] = signature(type(pipe).__call__).parameters["complex_human_instruction"].default

    @property
    def size_unit(self) -> int:
        return 32  # what the pipeline asks for whatever the VAE

    @property
    def noise_dtype(self) -> torch.dtype:
        return torch.float32

    def encode(self, asks: Sequence[Ask]) -> Tensors:
        """`prompt (B, max_sequence_length, D)` and `prompt_mask (B, max_sequence_length)`."""
        prompt, mask = zip(*(self._encode(ask) for ask in asks), strict=True)
        return {"prompt": torch.cat(prompt), "prompt_mask": torch.cat(mask)}

    def _encode(self, ask: Ask) -> tuple[Tensor, Tensor]:
        prompt, mask, _, _ = self.pipe.encode_prompt(
            [ask.text],
            do_classifier_free_guidance=False,
            device=self.device,
            max_sequence_length=self.max_sequence_length,
            complex_human_instruction=None if ask.bare else self.instruction,
        )
        return prompt, mask

    def predict(self, x: Tensor, timestep: Tensor, cond: Tensors) -> Tensor:
        return self.network(
            self.cast(x),
            encoder_hidden_states=self.cast(cond["prompt"]),
            encoder_attention_mask=cond["prompt_mask"],
            timestep=timestep * self.network.config.timestep_scale,
            return_dict=False,
        )[0].float()

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        latents: Tensor = self.vae.encode(pixels).latent
        return latents

    def call_options(self) -> dict[str, Any]:
        return {"max_sequence_length": self.max_sequence_length, "use_resolution_binning": False}


class Sana(Loaded, FlowPolicy):
    """Efficient-Large-Model/Sana_600M_512px_diffusers, Sana_1600M_512px_diffusers, Sana_1600M_1024px_diffusers,
    Sana_1600M_1024px_BF16_diffusers, SANA1.5_1.6B_1024px_diffusers, SANA1.5_4.8B_1024px_diffusers: 20 steps, guidance 4.5.
    NVIDIA's licence of the model, Gemma's of the text encoder.

    They come with DPM-Solver++ of second order (`solver: dpm2m`) on flow sigmas of shift 3; default: first-order steps on the same
    sigmas. Sizes are taken as they are, not brought to the nearest of the pipeline's list.
    """

    adapter_type: ClassVar[type[Adapter]] = SanaAdapter

    max_sequence_length: int = Field(default=300, ge=1)
    """Text tokens of a prompt, shorter prompts being padded."""

    def adapter_options(self) -> dict[str, Any]:
        return {"max_sequence_length": self.max_sequence_length}
