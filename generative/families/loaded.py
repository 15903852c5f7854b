"""Options that every policy loaded from a diffusers folder or hub id has."""

from __future__ import annotations

from typing import Any, Literal

import torch

from mmrl.generative.families.base import DTYPES, Adapter
from mmrl.generative.footprint import footprint, known
from mmrl.generative.policy import DenoisingPolicy

DType = Literal["float32", "bfloat16", "float16"]


class Loaded(DenoisingPolicy):
    """`path` is a diffusers folder or hub id."""

    path: str
    revision: str | None = None
    dtype: DType = "bfloat16"
    prompt_cache: str | None = None
    """Folder in which the conditioning of prompts is kept between runs, while the encoders are frozen."""
    vae_tiling: bool = False
    """Decode in tiles: less memory for large pictures and videos; tiles may show in the picture."""

    def footprint(self, train: Any, plan: Any, micro_batch: int, reference: bool, copies: int) -> str:
        """About how much memory an rl stage takes on each GPU, in one line. Raises UserError for a LoRA target that the
        network does not have."""
        found = known(self.path, self.adapter_type.network_name)
        if found is None:
            return f"memory per GPU: no estimate, '{self.path}' is neither a folder here nor a checkpoint that is known"
        targets = self.adapter_type.lora_targets
        return footprint(found, self.dtype, train, targets, plan, micro_batch, reference, copies).line()

    def read_options(self) -> dict[str, Any]:
        """Arguments of `from_pretrained` beside the common ones."""
        return {}

    def adapter_options(self) -> dict[str, Any]:
        """Arguments of the adapter beside the common ones."""
        return {}

    def make_adapter(self, device: torch.device) -> Adapter:
        kind = self.adapter_type
        pipe = kind.read(self.path, self.dtype, self.revision, **self.read_options())
        adapter = kind(pipe, DTYPES[self.dtype], device, **self.adapter_options())
        if self.vae_tiling:
            adapter.vae.enable_tiling()
        return adapter
