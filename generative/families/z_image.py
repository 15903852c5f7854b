"""Z-Image: a single-stream transformer that is told 1 - sigma and predicts the negative velocity, a Qwen3, the VAE of FLUX."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mmrl.generative.conditioning import Tensors, stacked
from mmrl.generative.families.base import Adapter
from mmrl.generative.families.loaded import Loaded
from mmrl.generative.flow import FlowPolicy


class ZImageAdapter(Adapter):
    """Its pipeline counts guidance from 0: `positive + g (positive - negative)` is `guidance_scale` g + 1 here, where 1 is none."""

    pipeline = "ZImagePipeline"
    network_name = "transformer"
    encoder_names = ("text_encoder",)
    lora_targets = (
        *("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0"),
        *("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    )

    def __init__(self, pipe: Any, dtype: torch.dtype, device: torch.device, max_sequence_length: int = 512) -> None:
        super().__init__(pipe, dtype, device)
        self.max_sequence_length = max_sequence_length

    @property
    def default_size(self) -> int:
        return 1024

    @property
    def size_unit(self) -> int:
        return 2 * self.vae_scale

    @property
    def noise_dtype(self) -> torch.dtype:
        return torch.float32

    def sigmas(self, num_steps: int) -> list[float] | None:
        found: list[float] = torch.linspace(1.0, 1 / num_steps, num_steps).tolist()
        return found

    def encode_texts(self, texts: list[str]) -> Tensors:
        # the pipeline writes its chat template into the list that it is given
        found, _ = self.pipe.encode_prompt(
            list(texts),
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        masks = [torch.ones(len(one), dtype=torch.bool, device=one.device) for one in found]
        return {"prompt": stacked(found), "prompt_mask": stacked(masks)}

    def predict(self, x: Tensor, timestep: Tensor, cond: Tensors) -> Tensor:
        prompt = self.cast(cond["prompt"])
        lengths = cond["prompt_mask"].sum(1).tolist()
        out = self.network(
            list(self.cast(x)[:, :, None]),
            (1000 - timestep) / 1000,
            [one[:length] for one, length in zip(prompt, lengths, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(out)[:, :, 0].float()

    def call_guidance(self, plan: Any) -> dict[str, Any]:
        return super().call_guidance(plan) | {"guidance_scale": float(plan.guidance_scale) - 1}

    def call_options(self) -> dict[str, Any]:
        return {"max_sequence_length": self.max_sequence_length}


class ZImage(Loaded, FlowPolicy):
    """Tongyi-MAI/Z-Image-Turbo (9 steps without guidance), Tongyi-MAI/Z-Image (28 to 50 steps, guidance 3 to 5 of the pipeline);
    1024x1024. Apache 2.0.

    `guidance_scale` 1 is none as everywhere in mmrl: it is one more than the number that the pipeline is told.
    """

    adapter_type: ClassVar[type[Adapter]] = ZImageAdapter

    max_sequence_length: int = Field(default=512, ge=1)
    """Text tokens, those of the chat template included."""

    def adapter_options(self) -> dict[str, Any]:
        return {"max_sequence_length": self.max_sequence_length}
