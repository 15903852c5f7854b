"""What a policy must know about a model family: its parts, its conditioning, its latents and its pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mmrl.errors import UserError
from mmrl.generative.conditioning import Tensors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Adapter:
    """A loaded diffusers pipeline seen as a table of facts. Subclasses fill in the class variables and `encode`, `predict`.

    `pipe` stays a plain pipeline: prompts are encoded by its own `encode_prompt`, it is saved by its own
    `save_pretrained`. Everything is in eval mode for good, so that rollout and replay see the same function.
    """

    pipeline: ClassVar[str]
    """Class name in diffusers."""
    network_name: ClassVar[str]
    """Attribute of the pipeline that denoises: transformer or unet."""
    encoder_names: ClassVar[tuple[str, ...]]
    lora_targets: ClassVar[tuple[str, ...]]

    def __init__(self, pipe: Any, dtype: torch.dtype, device: torch.device) -> None:
        self.pipe = pipe
        self.dtype = dtype
        self.device = device
        self.vae = _ready(pipe.vae, torch.float32, device)
        for module in self.modules.values():
            _ready(module, dtype, device)
        pipe.set_progress_bar_config(disable=True)

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
            if part not in (cls.network_name, "text_encoders"):
                raise UserError(f"train.parts: this model has no '{part}'; valid: {cls.network_name}, text_encoders")

    @property
    def network(self) -> Any:
        return getattr(self.pipe, self.network_name)

    @property
    def encoders(self) -> tuple[str, ...]:
        """The text encoders that this checkpoint has."""
        return tuple(name for name in self.encoder_names if getattr(self.pipe, name, None) is not None)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Everything that a stage may train: the network and the text encoders, by their name in the pipeline."""
        return {name: getattr(self.pipe, name) for name in (self.network_name, *self.encoders)}

    @contextmanager
    def using(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """Put other modules (a reference) in the place of the pipeline's own for a while."""
        own = {name: getattr(self.pipe, name) for name in modules}
        try:
            for name, module in modules.items():
                setattr(self.pipe, name, module)
            yield
        finally:
            for name, module in own.items():
                setattr(self.pipe, name, module)

    def size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Pixels `(height, width)`, the model's own where not given. Raises UserError on sizes it cannot make."""
        found = (height or self.default_size, width or self.default_size)
        if not self.fits(found):
            unit, most = self.size_unit, self.size_limit or max(found) + self.size_unit
            near = tuple(min(max(unit, round(side / unit) * unit), most) for side in found)
            raise UserError(f"height and width must be {self.valid_sizes()}, got {found}; nearest: {near}")
        return found

    def fits(self, size: Sequence[int]) -> bool:
        return all(side % self.size_unit == 0 and side <= (self.size_limit or side) for side in size)

    def valid_sizes(self) -> str:
        most = f" up to {self.size_limit}" if self.size_limit else ""
        return f"multiples of {self.size_unit}{most}"

    @property
    def default_size(self) -> int:
        """Pixels of a side that the model was made for."""
        return int(self.network.config.sample_size * self.pipe.vae_scale_factor)

    @property
    def size_unit(self) -> int:
        return int(self.pipe.vae_scale_factor)

    @property
    def size_limit(self) -> int | None:
        """Largest side in pixels, a multiple of `size_unit`; None where the network has none."""
        return None

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        factor = self.pipe.vae_scale_factor
        return (int(self.network.config.in_channels), height // factor, width // factor)

    def image_tokens(self, height: int, width: int) -> int:
        """Tokens of one image in the network, which set a dynamic shift."""
        return (height // self.size_unit) * (width // self.size_unit)

    def encode(self, texts: list[str]) -> Tensors:
        """Conditioning of the texts, `{name: (B, ...)}`, from the encoders as they are now."""
        raise NotImplementedError

    def predict(self, x: Tensor, timestep: Tensor, cond: Tensors) -> Tensor:
        """The network's output, float32 `(B, ...)`, for latents `x` (float32) at `timestep (B,)` float32."""
        raise NotImplementedError

    def call_options(self) -> dict[str, Any]:
        """Arguments of the plain pipeline call that are facts of this adapter (they go into the export's README)."""
        return {}

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents `(B, ...)` -> uint8 pictures `(B, H, W, 3)`, rounded as the plain pipeline does."""
        config = self.vae.config
        z = latents.float() / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
        image = self.vae.decode(z, return_dict=False)[0]
        image = (image / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu()
        return (image * 255).round().to(torch.uint8).numpy()

    @torch.no_grad()
    def encode_images(self, images: Sequence[np.ndarray]) -> Tensor:
        """Uint8 pictures (H, W, 3) of one size -> latents `(B, ...)` float32, the mode of the VAE's posterior.

        Raises UserError for pictures of several sizes, or of a size that the model cannot take."""
        sizes = list(dict.fromkeys(image.shape[:2] for image in images))
        if len(sizes) > 1 or not self.fits(sizes[0]):
            named = ", ".join(f"{height}x{width}" for height, width in sizes[:4]) + (", ..." if len(sizes) > 4 else "")
            raise UserError(
                f"the example pictures are {named} (height x width), but a batch needs one size, {self.valid_sizes()} "
                f"pixels; set the `size` option of the examples source, e.g. size: {self.default_size}"
            )
        pixels = torch.from_numpy(np.stack(images)).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        z = self.vae.encode(pixels).latent_dist.mode()
        config = self.vae.config
        return (z - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor

    def save(self, folder: Path) -> None:
        """Write the pipeline for `from_pretrained` (safetensors)."""
        with _quiet():
            self.pipe.save_pretrained(folder, safe_serialization=True)

    def cast(self, value: Tensor) -> Tensor:
        """To the dtype that the network's weights have now (float32 while it is trained in full)."""
        return value.to(next(self.network.parameters()).dtype)


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
