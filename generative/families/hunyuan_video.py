"""HunyuanVideo: a two-stream transformer that is told 1000 sigma and, where it is guidance-distilled, 1000 times a guidance; a Llama behind a
template, a CLIP."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mmrl.generative.conditioning import Tensors
from mmrl.generative.families.base import Adapter
from mmrl.generative.families.loaded import Loaded
from mmrl.generative.flow import FlowPolicy


class HunyuanVideoAdapter(Adapter):
    pipeline = "HunyuanVideoPipeline"
    network_name = "transformer"
    encoder_names = ("text_encoder", "text_encoder_2")
    lora_targets = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    )
    makes = "video"
    distilled = True
    default_frames = 129
    default_fps = 24
    default_sides = (720, 1280)
    noise_dtype = torch.float32

    def __init__(self, pipe: Any, dtype: torch.dtype, device: torch.device, max_sequence_length: int = 256) -> None:
        super().__init__(pipe, dtype, device)
        self.max_sequence_length = max_sequence_length

    @property
    def size_unit(self) -> int:
        return self.vae_scale * int(self.network.config.patch_size)

    def sigmas(self, num_steps: int) -> list[float] | None:
        found: list[float] = np.linspace(1.0, 0.0, num_steps + 1)[:-1].tolist()
        return found

    def facts(self, plan: Any, rows: int) -> Tensors:
        return super().facts(plan, rows) if self.network.config.guidance_embeds else {}

    def encode_texts(self, texts: list[str]) -> Tensors:
        prompt, pooled, mask = self.pipe.encode_prompt(
            texts, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return {"prompt": prompt, "prompt_mask": mask, "pooled": pooled}

    def predict(self, x: Tensor, timestep: Tensor, cond: Tensors) -> Tensor:
        guidance = cond.get("guidance")
        return self.network(
            hidden_states=self.cast(x),
            timestep=timestep,
            encoder_hidden_states=self.cast(cond["prompt"]),
            encoder_attention_mask=self.cast(cond["prompt_mask"]),
            pooled_projections=self.cast(cond["pooled"]),
            guidance=None if guidance is None else self.cast(guidance) * 1000,
            return_dict=False,
        )[0].float()

    def call_options(self) -> dict[str, Any]:
        return {"max_sequence_length": self.max_sequence_length}


class HunyuanVideo(Loaded, FlowPolicy):
    """HunyuanVideo text-to-video: hunyuanvideo-community/HunyuanVideo (720x1280, 129 frames of 24 per second, 50 steps, guidance 6, told to
    the network at no cost). Tencent Hunyuan Community License."""

    adapter_type: ClassVar[type[Adapter]] = HunyuanVideoAdapter

    max_sequence_length: int = Field(default=256, ge=1)
    """Llama tokens of a prompt behind the template."""

    def adapter_options(self) -> dict[str, Any]:
        return {"max_sequence_length": self.max_sequence_length}
