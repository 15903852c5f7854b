"""Untrained tiny models of the real classes, made on demand: for demos, tests and a first look. Heavy imports wait for `load`."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from mmrl.generative.diffusion import DiffusionPolicy
from mmrl.generative.families.base import DTYPES, Adapter
from mmrl.generative.families.loaded import DType
from mmrl.generative.families.sd3 import SD3Adapter
from mmrl.generative.families.sd15 import SD15Adapter
from mmrl.generative.flow import FlowPolicy


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
