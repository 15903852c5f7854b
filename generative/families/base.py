"""What a policy must know about a model family: its parts, its conditioning, its latents and its pictures or videos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mmrl.errors import UserError
from mmrl.generative.conditioning import Ask, Size, Tensors
from mmrl.generative.schedule import dynamic_mu

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Adapter:
    """A loaded diffusers pipeline seen as a table of facts. Subclasses fill in the class variables, `encode_texts` and `predict`.

    `pipe` stays a plain pipeline: prompts are encoded by its own `encode_prompt`, it is saved by its own
    `save_pretrained`. Everything is in eval mode for good, so that rollout and replay see the same function.
    Latents have the layout in which the pipeline draws their noise; what the network wants packed, `predict` packs.
    """

    pipeline: ClassVar[str]
    """Class name in diffusers."""
    network_name: ClassVar[str]
    """Attribute of the pipeline that denoises: transformer or unet."""
    expert_names: ClassVar[tuple[str, ...]] = ()
    """Attributes of further networks of the same kind that take over at other timesteps, in checkpoints that have them."""
    encoder_names: ClassVar[tuple[str, ...]]
    lora_targets: ClassVar[tuple[str, ...]]
    makes: ClassVar[Literal["image", "video"]] = "image"
    media_role: ClassVar[str | None] = None
    """What the media of a prompt are to the model: None (it takes none), "first_frame" or "edit"."""
    distilled: ClassVar[bool] = False
    """Guidance is a number that the network is told (one pass), not a second pass with the negative prompt."""
    default_frames: int = 1
    default_fps: int = 16

    def __init__(self, pipe: Any, dtype: torch.dtype, device: torch.device) -> None:
        self.pipe = pipe
        self.dtype = dtype
        self.rounds_as: Any = None
        """The network that another one stands in for."""
        self.device = device
        self.vae = _ready(pipe.vae, torch.float32, device)
        for module in self.frozen_parts():
            _ready(module, dtype, device)
        for module in self.modules.values():
            _ready(module, dtype, device)
        pipe.set_progress_bar_config(disable=True)

    # -- loading

    @classmethod
    def read(cls, path: str, dtype: str, revision: str | None = None, **options: Any) -> Any:
        """The pipeline of a folder or hub id: safetensors only, no remote code. Raises UserError when it is not there or not this
        kind of pipeline."""
        import diffusers

        kind = getattr(diffusers, cls.pipeline)
        dtypes = {"vae": torch.float32, "default": DTYPES[dtype]}
        try:
            with _quiet():
                pipe = kind.from_pretrained(
                    path,
                    revision=revision,
                    dtype=dtypes,
                    use_safetensors=True,
                    trust_remote_code=False,
                    **options,
                )
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"cannot load '{path}' as a {cls.pipeline}: {str(error).splitlines()[0]}") from error
        return pipe

    @classmethod
    def check_parts(cls, parts: Sequence[str]) -> None:
        """Raises UserError for a name of `train.parts` that models of this kind do not have."""
        for part in parts:
            valid = (cls.network_name, *cls.expert_names, "text_encoders")
            if part not in valid:
                raise UserError(f"train.parts: this model has no '{part}'; valid: {', '.join(valid)}")

    def frozen_parts(self) -> list[nn.Module]:
        """Modules beside VAE, network and text encoders that the pipeline runs (an image encoder)."""
        return []

    @property
    def network(self) -> Any:
        return getattr(self.pipe, self.network_name)

    @property
    def networks(self) -> tuple[str, ...]:
        """The denoising networks that this checkpoint has: one, or one per expert."""
        experts = (name for name in self.expert_names if getattr(self.pipe, name, None) is not None)
        return (self.network_name, *experts)

    @property
    def encoders(self) -> tuple[str, ...]:
        """The text encoders that this checkpoint has."""
        return tuple(name for name in self.encoder_names if getattr(self.pipe, name, None) is not None)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Everything that a stage may train: the networks and the text encoders, by their name in the pipeline."""
        return {name: getattr(self.pipe, name) for name in (*self.networks, *self.encoders)}

    @contextmanager
    def using(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """Put other modules (a reference) in the place of the pipeline's own for a while."""
        own = {name: getattr(self.pipe, name) for name in modules}
        self.rounds_as = own.get(self.network_name)
        try:
            for name, module in modules.items():
                setattr(self.pipe, name, module)
            yield
        finally:
            self.rounds_as = None
            for name, module in own.items():
                setattr(self.pipe, name, module)

    # -- sizes

    def size(self, plan: Any) -> Size:
        """Height, width and frames of a plan, the model's own where it does not say. Raises UserError on what the model cannot
        make."""
        height, width = self.default_sides
        found = Size(plan.height or height, plan.width or width, plan.num_frames or self.default_frames)
        if not self.fits(found):
            near = self.nearest(found)
            raise UserError(f"height and width must be {self.valid_sizes()}, got {tuple(found[:2])}; nearest: {near}")
        if self.makes == "image" and found.frames != 1:
            raise UserError(f"this model draws pictures, so num_frames is 1, got {found.frames}")
        self._check_frames(found.frames)
        return found

    def _check_frames(self, frames: int) -> None:
        unit = self.frame_unit
        if (frames - 1) % unit:
            near = (round((frames - 1) / unit) * unit) + 1
            raise UserError(f"num_frames must be 1 more than a multiple of {unit}, got {frames}; nearest: {near}")

    def fits(self, size: Sequence[int]) -> bool:
        return all(side % self.size_unit == 0 and side <= (self.size_limit or side) for side in size[:2])

    def nearest(self, size: Size) -> tuple[int, int]:
        """Height and width that fit, near those of `size`, which do not."""
        unit = self.size_unit
        height, width = (min(max(unit, round(side / unit) * unit), self.size_limit or side + unit) for side in size[:2])
        return height, width

    def valid_sizes(self) -> str:
        most = f" up to {self.size_limit}" if self.size_limit else ""
        return f"multiples of {self.size_unit}{most}"

    @property
    def vae_scale(self) -> int:
        """Pixels of a latent's side."""
        return int(getattr(self.pipe, "vae_scale_factor", 0) or self.pipe.vae_scale_factor_spatial)

    @property
    def default_size(self) -> int:
        """Pixels of a side that the model was made for."""
        return int(self.network.config.sample_size * self.vae_scale)

    @property
    def default_sides(self) -> tuple[int, int]:
        """Height and width in pixels that the model was made for."""
        return self.default_size, self.default_size

    @property
    def size_unit(self) -> int:
        return self.vae_scale

    @property
    def size_limit(self) -> int | None:
        """Largest side in pixels, a multiple of `size_unit`; None where the network has none."""
        return None

    @property
    def frame_unit(self) -> int:
        """Frames that one latent frame holds (the first holds one)."""
        return int(getattr(self.pipe, "vae_scale_factor_temporal", 1))

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        """Shape of one latent: `(C, h, w)` of a picture, `(C, t, h, w)` of a video."""
        spatial = (size.height // self.vae_scale, size.width // self.vae_scale)
        if self.makes == "image":
            return (self.latent_channels, *spatial)
        return (self.latent_channels, (size.frames - 1) // self.frame_unit + 1, *spatial)

    @property
    def noise_dtype(self) -> torch.dtype:
        """In which the pipeline draws its start noise."""
        return self.dtype

    @property
    def latent_channels(self) -> int:
        return int(self.network.config.in_channels)

    # -- schedule

    def tokens(self, size: Size) -> int:
        """Tokens of a sample in the network, which set a dynamic shift."""
        return (size.height // self.size_unit) * (size.width // self.size_unit)

    def mu(self, size: Size, num_steps: int) -> float:
        """The dynamic shift, for schedulers that have one."""
        return dynamic_mu(self.pipe.scheduler.config, self.tokens(size))

    def sigmas(self, num_steps: int) -> list[float] | None:
        """The sigmas that the pipeline hands to its scheduler (before any shift); None where it asks for a number of steps."""
        return None

    # -- the network and what it is told

    def encode_texts(self, texts: list[str]) -> Tensors:
        """Conditioning of the texts, `{name: (B, ...)}`, from the encoders as they are now. What has one row per token may
        be padded with zeros behind to a common length; then a mask (bool or integer) stands beside it."""
        raise NotImplementedError

    def encode_media(self, asks: Sequence[Ask]) -> Tensors:
        """What the network is told about the pictures of the asks, `{name: (B, ...)}`; nothing where it takes none."""
        return {}

    def encode(self, asks: Sequence[Ask]) -> Tensors:
        """Conditioning of what is asked for, `{name: (B, ...)}`."""
        return self.encode_texts([ask.text for ask in asks]) | self.encode_media(asks)

    def facts(self, plan: Any, rows: int) -> Tensors:
        """Numbers of a plan (a `sampling_type`) that the network is told, `{name: (rows,)}` float32 on the device."""
        if not self.distilled:
            return {}
        return {"guidance": torch.full((rows,), float(plan.guidance_scale), device=self.device)}

    def predict(self, x: Tensor, timestep: Tensor, cond: Tensors) -> Tensor:
        """The network's output, float32 `(B, ...)`, for latents `x` (float32) at `timestep (B,)` float32 of the scheduler."""
        raise NotImplementedError

    def combine(self, negative: Tensor, positive: Tensor, scale: float, timestep: Tensor, cond: Tensors) -> Tensor:
        """The guided output of two passes, all `(B, ...)`."""
        return negative + scale * (positive - negative)

    def call_guidance(self, plan: Any) -> dict[str, Any]:
        """How the plain pipeline call is told the guidance of a plan."""
        told = {"guidance_scale": float(plan.guidance_scale)}
        guides = plan.guidance_scale > 1 and not self.distilled
        return told | ({"negative_prompt": plan.negative_prompt} if guides and plan.negative_prompt else {})

    @property
    def call_output(self) -> str:
        """Where what the plain pipeline call returns has its pictures or videos."""
        return "images" if self.makes == "image" else "frames"

    def call_size(self, size: Size) -> dict[str, Any]:
        """How the plain pipeline call is told a size."""
        frames = {"num_frames": size.frames} if self.makes == "video" else {}
        return {"height": size.height, "width": size.width, **frames}

    def call_options(self) -> dict[str, Any]:
        """Arguments of the plain pipeline call that are facts of this adapter (they go into the export's README)."""
        return {}

    # -- pictures

    def to_vae(self, latents: Tensor) -> Tensor:
        """Latents as the VAE decodes them: `z / scaling_factor + shift_factor`."""
        config = self.vae.config
        return latents.float() / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)

    def from_vae(self, z: Tensor) -> Tensor:
        """The inverse of `to_vae`."""
        config = self.vae.config
        return (z - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor

    def pixels(self, latents: Tensor) -> Tensor:
        """Latents `(B, ...)` -> pictures `(B, 3, H, W)` or videos `(B, 3, T, H, W)` float32 in [0, 1], with gradient where it is
        enabled."""
        return (self.vae.decode(self.to_vae(latents), return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents `(B, ...)` -> uint8 pictures `(B, H, W, 3)` or videos `(B, T, H, W, 3)`, rounded as the plain pipeline does."""
        return (self.pixels(latents).movedim(1, -1).cpu() * 255).round().to(torch.uint8).numpy()

    @torch.no_grad()
    def encode_images(self, images: Sequence[np.ndarray]) -> Tensor:
        """Uint8 pictures (H, W, 3), or videos (T, H, W, 3), of one size -> latents `(B, ...)` float32, the mode of the VAE's posterior.

        Raises UserError for pictures of several sizes, or of a size that the model cannot take."""
        sizes = list(dict.fromkeys(image.shape[:-1] for image in images))
        if len(sizes) > 1 or not self.fits(sizes[0][-2:]):
            named = ", ".join("x".join(map(str, size[-2:])) for size in sizes[:4]) + (", ..." if len(sizes) > 4 else "")
            raise UserError(
                f"the example pictures are {named} (height x width), but a batch needs one size, {self.valid_sizes()} "
                f"pixels; set the `size` option of the examples source, e.g. size: {self.default_size}"
            )
        if len(sizes[0]) == 3:
            self._check_frames(sizes[0][0])
        pixels = torch.from_numpy(np.stack(images)).to(self.device).movedim(-1, 1).float() / 127.5 - 1
        return self.from_vae(self.encode_pixels(pixels))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """What the VAE makes of pictures or videos `(B, 3, ...)` in [-1, 1], before `from_vae`."""
        return self.vae.encode(pixels).latent_dist.mode()

    def save(self, folder: Path) -> None:
        """Write the pipeline for `from_pretrained` (safetensors)."""
        with _quiet():
            self.pipe.save_pretrained(folder, safe_serialization=True)

    def cast(self, value: Tensor) -> Tensor:
        """To the dtype that the network's weights have now (float32 while it is trained in full), beside those that it keeps
        in float32. What stands in for it is told the same."""
        return value.to((self.network if self.rounds_as is None else self.rounds_as).dtype)


def channel_statistics(vae: Any, dims: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents of a VAE that says them per channel, float32 `(1, C, 1, ...)` of `dims` dimensions."""
    values = (torch.tensor(v, device=vae.device) for v in (vae.config.latents_mean, vae.config.latents_std))
    mean, std = (value.float().reshape(1, -1, *(1,) * (dims - 2)) for value in values)
    return mean, std


def _ready(module: nn.Module, dtype: torch.dtype, device: torch.device) -> Any:
    """On the device, frozen, in eval mode, in `dtype` unless it was loaded with parts of its own choosing in float32."""
    if all(parameter.dtype == torch.float32 for parameter in module.parameters()) or dtype == torch.float32:
        for parameter in module.parameters():
            parameter.data = parameter.data.to(dtype)
    return module.to(device).eval().requires_grad_(False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of reading and writing model files (downloads keep theirs)."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    loggers = [log for log in (diffusers_logging, transformers_logging) if log.is_progress_bar_enabled()]
    for log in loggers:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in loggers:
            log.enable_progress_bar()
