"""Kandinsky 5: a transformer with cross-attention to text that is told 1000 sigma, a Qwen2.5-VL and a CLIP; videos and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmrl.errors import UserError
from mmrl.generative.conditioning import Size, Tensors, stacked
from mmrl.generative.families.base import Adapter
from mmrl.generative.families.loaded import Loaded
from mmrl.generative.flow import FlowPolicy


class Kandinsky5Adapter(Adapter):
    """Latents have their channels last, `(t, h, w, C)`. The network knows no text mask: rows of one length go through it together."""

    pipeline = "Kandinsky5T2VPipeline"
    network_name = "transformer"
    encoder_names = ("text_encoder", "text_encoder_2")
    lora_targets = (
        *(
            f"{attn}.{layer}"
            for attn in ("self_attention", "cross_attention")
            for layer in ("to_query", "to_key", "to_value", "out_layer")
        ),
        *("feed_forward.in_layer", "feed_forward.out_layer"),
    )
    makes: ClassVar[Literal["image", "video"]] = "video"
    default_frames = 121
    default_fps = 24
    default_sides = (512, 768)

    def __init__(self, pipe: Any, dtype: torch.dtype, device: torch.device, max_sequence_length: int = 512) -> None:
        kind = pipe.transformer.config.attention_type
        if kind != "regular":
            raise UserError(f"this checkpoint has attention of type '{kind}' (sparse), but only 'regular' is supported")
        super().__init__(pipe, dtype, device)
        self.max_sequence_length = max_sequence_length

    @property
    def vae_scale(self) -> int:
        return int(self.pipe.vae_scale_factor_spatial)

    @property
    def size_unit(self) -> int:
        return self.vae_scale * int(self.network.config.patch_size[1])

    @property
    def latent_channels(self) -> int:
        return int(self.network.config.in_visual_dim)

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        """`(t, h, w, C)`, t being 1 of a picture."""
        frames = (size.frames - 1) // self.frame_unit + 1
        return (frames, size.height // self.vae_scale, size.width // self.vae_scale, self.latent_channels)

    def encode_texts(self, texts: list[str]) -> Tensors:
        prompts, pooled = [], []
        for text in texts:  # the pipeline does not mask the padding of a batch
            prompt, clip, _ = self.pipe.encode_prompt(
                [text], device=self.device, max_sequence_length=self.max_sequence_length
            )
            prompts.append(prompt[0])
            pooled.append(clip)
        masks = [torch.ones(len(prompt), dtype=torch.bool, device=self.device) for prompt in prompts]
        return {"prompt": stacked(prompts), "prompt_mask": stacked(masks), "pooled": torch.cat(pooled)}

    def predict(self, x: Tensor, timestep: Tensor, cond: Tensors) -> Tensor:
        lengths = cond["prompt_mask"].sum(1)
        groups = [(lengths == length).nonzero()[:, 0] for length in lengths.unique()]
        found = [
            self._run(x[at], timestep[at], cond["prompt"][at, : int(lengths[at[0]])], cond["pooled"][at])
            for at in groups
        ]
        return torch.cat(found)[torch.cat(groups).argsort()]

    def to_vae(self, latents: Tensor) -> Tensor:
        """Without the shift that the VAE of the picture model is made with: its pipeline does not add it."""
        return latents.movedim(-1, 1).float() / self.vae.config.scaling_factor

    def from_vae(self, z: Tensor) -> Tensor:
        return z.movedim(1, -1) * self.vae.config.scaling_factor

    def call_options(self) -> dict[str, Any]:
        return {"max_sequence_length": self.max_sequence_length}

    def call_guidance(self, plan: Any) -> dict[str, Any]:
        """The negative prompt is always told, also when empty: without one the video pipeline takes its own."""
        told: dict[str, Any] = {"guidance_scale": float(plan.guidance_scale)}
        return told | ({"negative_prompt": plan.negative_prompt} if plan.guidance_scale > 1 else {})

    def rope_scale(self, height: int, width: int) -> Sequence[float]:
        """What positions in time, height and width are divided by."""
        scale: Sequence[float] = self.pipe._get_scale_factor(height, width)
        return scale

    def _run(self, x: Tensor, timestep: Tensor, prompt: Tensor, pooled: Tensor) -> Tensor:
        """The network's output for rows whose text `prompt (B, L, D)` has no padding."""
        _, frames, height, width, _ = x.shape
        seen = [x]
        if self.network.config.visual_cond:  # room for a first frame and its mask
            seen += [torch.zeros_like(x), torch.zeros_like(x[..., :1])]
        patch = self.network.config.patch_size
        sides = (frames, height // patch[1], width // patch[2])
        return self.network(
            hidden_states=self.cast(torch.cat(seen, -1)),
            encoder_hidden_states=self.cast(prompt),
            pooled_projections=self.cast(pooled),
            timestep=self.cast(timestep),
            visual_rope_pos=[torch.arange(side, device=x.device) for side in sides],
            text_rope_pos=torch.arange(prompt.shape[1], device=x.device),
            scale_factor=self.rope_scale(height * self.vae_scale, width * self.vae_scale),
            return_dict=False,
        ).float()


class Kandinsky5ImageAdapter(Kandinsky5Adapter):
    """A video of one frame that a VAE for pictures decodes, in the sizes that the pipeline knows."""

    pipeline = "Kandinsky5T2IPipeline"
    makes: ClassVar[Literal["image", "video"]] = "image"
    call_output = "image"
    default_frames = 1
    default_sides = (1024, 1024)

    def fits(self, size: Sequence[int]) -> bool:
        return (size[1], size[0]) in self.pipe.resolutions

    def nearest(self, size: Size) -> tuple[int, int]:
        """The shape that the pipeline would take instead."""
        near = min(self.pipe.resolutions, key=lambda one: abs(one[0] / one[1] - size.width / size.height))
        return near[1], near[0]

    def valid_sizes(self) -> str:
        return "one of " + ", ".join(f"{height}x{width}" for width, height in self.pipe.resolutions)

    def to_vae(self, latents: Tensor) -> Tensor:
        return super().to_vae(latents)[:, :, 0]

    def from_vae(self, z: Tensor) -> Tensor:
        return super().from_vae(z[:, :, None])

    def rope_scale(self, height: int, width: int) -> Sequence[float]:
        return (1.0, 1.0, 1.0)


class Kandinsky5(Loaded, FlowPolicy):
    """Kandinsky 5 text-to-video (512x768, 121 frames of 24 per second, 50 steps, guidance 5). Checkpoints of `kandinskylab/`:
    Kandinsky-5.0-T2V-Lite-sft-5s-Diffusers, Kandinsky-5.0-T2V-Lite-pretrain-5s-Diffusers, -nocfg-5s-Diffusers (guidance 1),
    -distilled16steps-5s-Diffusers (16 steps, guidance 1), Kandinsky-5.0-T2V-Pro-sft-5s-Diffusers. MIT. A checkpoint whose
    config asks for sparse attention (`attention_type: nabla`, as those of 10s do) is refused.

    Guidance compares with `negative_prompt`, which is empty by default; the pipeline's own is "Static, 2D cartoon, cartoon, 2d
    animation, paintings, images, worst quality, low quality, ugly, deformed, walking backwards".
    """

    adapter_type: ClassVar[type[Adapter]] = Kandinsky5Adapter

    max_sequence_length: int = Field(default=512, ge=1, le=1024)
    """Text tokens of a prompt."""

    def adapter_options(self) -> dict[str, Any]:
        return {"max_sequence_length": self.max_sequence_length}


class Kandinsky5Image(Kandinsky5):
    """Kandinsky 5 text-to-image: kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers, Kandinsky-5.0-T2I-Lite-pretrain-Diffusers (1024x1024
    and six other shapes, 50 steps, guidance 3.5). MIT."""

    adapter_type: ClassVar[type[Adapter]] = Kandinsky5ImageAdapter
