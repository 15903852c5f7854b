"""The denoising policies that a config names: which weights, which adapter. Heavy imports wait for `load`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from mmrl.generative.adapters.base import DTYPES, Adapter
from mmrl.generative.adapters.sd3 import SD3Adapter
from mmrl.generative.adapters.sd15 import SD15Adapter
from mmrl.generative.diffusion import DiffusionPolicy
from mmrl.generative.flow import FlowPolicy

DType = Literal["float32", "bfloat16", "float16"]


class SD3(FlowPolicy):
    """Stable Diffusion 3 or 3.5: `path` is a diffusers folder or hub id."""

    adapter_type: ClassVar[type[Adapter]] = SD3Adapter

    path: str
    revision: str | None = None
    dtype: DType = "bfloat16"
    max_sequence_length: int = Field(default=128, ge=1, le=512)
    """T5 tokens of a prompt."""
    t5: bool = True
    """Without it the T5 half of the prompt is zeros, and 5 billion parameters are not loaded."""

    def make_adapter(self, device: torch.device) -> Adapter:
        options: dict[str, Any] = {} if self.t5 else {"text_encoder_3": None, "tokenizer_3": None}
        pipe = SD3Adapter.read(self.path, self.dtype, self.revision, **options)
        return SD3Adapter(pipe, DTYPES[self.dtype], device, self.max_sequence_length)


class SD15(DiffusionPolicy):
    """Stable Diffusion 1.x or 2.x with DDIM: `path` is a diffusers folder or hub id.

    A checkpoint that comes with another scheduler (SD1.5: PNDM) gets a DDIMScheduler of the same settings, without clipping
    and thresholding; it is saved and exported with the model.
    """

    adapter_type: ClassVar[type[Adapter]] = SD15Adapter

    path: str
    revision: str | None = None
    dtype: DType = "float32"

    def make_adapter(self, device: torch.device) -> Adapter:
        options: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False}
        return SD15Adapter(
            SD15Adapter.read(self.path, self.dtype, self.revision, **options), DTYPES[self.dtype], device
        )


class TinySD3(FlowPolicy):
    """An untrained StableDiffusion3Pipeline on 24x24 pixels, made on demand from a seed."""

    adapter_type: ClassVar[type[Adapter]] = SD3Adapter

    seed: int = 0
    size: int = Field(default=24, ge=8)
    patch: int = Field(default=8, ge=1)
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    head_dim: int = Field(default=32, ge=8)
    dtype: DType = "float32"

    def make_adapter(self, device: torch.device) -> Adapter:
        from mmrl.generative.tiny import tiny_sd3
        from mmrl.generative.tiny_text import PHRASE_TOKENS

        pipe = tiny_sd3(**self.model_dump(exclude={"dtype"}))
        return SD3Adapter(pipe, DTYPES[self.dtype], device, PHRASE_TOKENS)


class TinySD15(DiffusionPolicy):
    """An untrained StableDiffusionPipeline on 16x16 pixels, made on demand from a seed."""

    adapter_type: ClassVar[type[Adapter]] = SD15Adapter

    seed: int = 0
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    size: int = Field(default=16, ge=8, multiple_of=2)
    width: int = Field(default=32, ge=8, multiple_of=8)
    dtype: DType = "float32"

    def make_adapter(self, device: torch.device) -> Adapter:
        from mmrl.generative.tiny import tiny_sd15

        return SD15Adapter(tiny_sd15(**self.model_dump(exclude={"dtype"})), DTYPES[self.dtype], device)
