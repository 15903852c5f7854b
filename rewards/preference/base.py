"""What every reward model that looks at pictures has: where its weights come from, batches, frozen weights, strict loading."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from mmrl.errors import UserError
from mmrl.reward import Reward, rgb
from mmrl.rollout import Sample

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class PictureModel(Reward):
    """Scores (picture, prompt) pairs in batches; several pictures of one sample are averaged.

    A batch gives what its rows give alone, up to rounding: rows are padded with masks or to a fixed length.
    """

    needs = ("image",)
    path: str
    """Hub id, folder or file of the weights."""
    hub_revision: str | None = None
    """Branch, tag or commit of a hub id."""
    batch_size: int = Field(default=16, ge=1)
    """Pictures per forward pass; more take more memory."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the model computes in."""

    _device: torch.device = PrivateAttr(default_factory=lambda: torch.device("cpu"))
    _model: Any = PrivateAttr(default=None)

    def setup(self, device: torch.device) -> None:
        """Load the model, frozen and in eval mode. Raises UserError when it is not there or does not fit."""
        self._device = device
        self._model = self.load().to(device).eval().requires_grad_(False)

    @abstractmethod
    def load(self) -> nn.Module:
        """The model, in the dtype it runs in."""

    @abstractmethod
    def rate(self, pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> Tensor:
        """Scores `(B,)` of uint8 RGB pictures (H, W, 3), each with its prompt."""

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """One number per sample."""
        pairs = [(row, rgb(image), sample.prompt.text) for row, sample in enumerate(samples) for image in sample.images]
        found: list[float] = []
        with torch.inference_mode():
            for at in range(0, len(pairs), self.batch_size):
                part = pairs[at : at + self.batch_size]
                found += self.rate([one[1] for one in part], [one[2] for one in part]).float().cpu().tolist()
        own: list[list[float]] = [[] for _ in samples]
        for (row, _, _), value in zip(pairs, found, strict=True):
            own[row].append(value)
        return [float(np.mean(values)) for values in own]


class ScoreHead(nn.Module):
    """The head of the LAION aesthetic predictor and of ImageReward: linear layers width-1024-128-64-16-1, dropout between, no
    activations; named `layers` as in the published files."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2),
            nn.Linear(128, 64), nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        """`(B, width) -> (B,)`."""
        return self.layers(features)[:, 0]


def pretrained(
    kind: Any, path: str, revision: str | None, dtype: torch.dtype, allowed: Collection[str] = (), **options: Any
) -> Any:
    """`kind.from_pretrained`: safetensors only, no remote code, every weight found and every weight of the file used.

    Raises UserError naming weights of another shape, and missing or unknown ones, except those whose names end in one of `allowed`."""
    try:
        model, info = kind.from_pretrained(
            path,
            revision=revision,
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **options,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load '{path}' as a {kind.__name__}: {str(error).splitlines()[0]}") from error
    for name, got, expected in sorted(info["mismatched_keys"]):
        raise UserError(f"'{path}' does not fit the model: {name} is {tuple(got)}, expected {tuple(expected)}")
    check_keys(path, info["missing_keys"], info["unexpected_keys"], allowed)
    return model


def check_keys(path: str, missing: Collection[str], unexpected: Collection[str], allowed: Collection[str] = ()) -> None:
    """Raises UserError for weights that are not in the file, or that the model does not have."""
    for what, names in (("lacks", missing), ("has unknown", unexpected)):
        bad = sorted(name for name in names if not name.endswith(tuple(allowed) or "\0"))
        if bad:
            raise UserError(f"'{path}' {what} weights: {', '.join(bad[:4])}{', ...' if len(bad) > 4 else ''}")


def fill(
    model: nn.Module, state: Mapping[str, Tensor], path: str, allowed: Collection[str] = (), assign: bool = False
) -> None:
    """Load `state` into `model`, by copy or (`assign`) as they are. Raises UserError for missing and unknown weights (see
    `check_keys`)."""
    try:
        found = model.load_state_dict(dict(state), strict=False, assign=assign)
    except RuntimeError as error:  # a shape that differs
        raise UserError(f"'{path}' does not fit the model: {str(error).splitlines()[-1].strip()}") from error
    check_keys(path, found.missing_keys, found.unexpected_keys, allowed)


def tensors(path: str, key: str | None = None) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a .pt/.pth/.bin file (read with `weights_only`), below `key` where there is one.

    Raises UserError for a file that is not there or holds something else."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"there is no weight file '{path}'")
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"'{path}' cannot be read as plain tensors: {str(error).splitlines()[0]}") from error
    found = found.get(key, found) if key is not None and isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"'{path}' does not hold a table of tensors" + (f" below '{key}'" if key else ""))
    return found


def file_of(path: str, name: str, revision: str | None = None) -> str:
    """A file: `path` itself, `name` in the folder `path`, or `name` of the hub repository `path`.

    Raises UserError when it is neither there nor can be downloaded."""
    local = Path(path)
    if local.is_file():
        return str(local)
    if local.is_dir():
        if not (local / name).is_file():
            raise UserError(f"there is no '{name}' in the folder '{path}'")
        return str(local / name)
    from huggingface_hub import hf_hub_download

    try:
        return hf_hub_download(path, name, revision=revision)
    except Exception as error:
        raise UserError(f"cannot get '{name}' of '{path}': {str(error).splitlines()[0]}") from error
