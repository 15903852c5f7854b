"""VideoAlign (VideoReward): a Qwen2-VL that scores visual quality, motion quality and text alignment of a video."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor, nn

from mmrl.errors import UserError
from mmrl.reward import frame_rate
from mmrl.rewards.preference.base import file_of
from mmrl.rewards.preference.headed import Headed
from mmrl.rewards.preference.headed_adapter import CONFIG as ADAPTER_CONFIG
from mmrl.rewards.preference.headed_inputs import Row, sized_frames
from mmrl.rewards.preference.rubric import Rubric, read_rubric
from mmrl.rollout import Sample

AXES = ("vq", "mq", "ta")
MEAN_STD = {"vq": (3.6757, 2.2476), "mq": (1.1646, 1.3811), "ta": (2.8105, 2.5121)}
"""What z-scores are made with where the checkpoint does not say."""
ALPHA = 128.0
STEP, LEAST, MOST = 2, 4, 768
"""Frames: a multiple of 2, at least 4 where there are so many, at most 768."""
CONFIG = "model_config.json"


class VideoAlign(Headed):
    """VideoAlign: visual quality (`vq`), motion quality (`mq`) and text alignment (`ta`) of a video as z-scores, or their sum.

    Source: Liu et al. 2025 (arXiv 2501.13918). `path` holds `model_config.json` and `checkpoint-11352/model.pth`, or a checkpoint's
    folder with adapters alone (`adapter_config.json`, `adapter_model.safetensors`, `non_lora_state_dict.pth`). The question that it
    was trained with is a text file `rubric` (default: `rubric.txt` beside `model_config.json`) with `{prompt}` and the three tokens
    `<|VQ_reward|>`, `<|MQ_reward|>`, `<|TA_reward|>` in this order.
    """

    needs = ("video",)
    licence = "MIT (code); weights: Apache-2.0 by the model card"
    path: str = "KwaiVGI/VideoReward"
    file: str = "checkpoint-11352/model.pth"
    base: str = "Qwen/Qwen2-VL-2B-Instruct"
    batch_size: int = Field(default=2, ge=1)
    of: Literal["overall", "vq", "mq", "ta"] = "overall"
    """`vq`: visual quality, `mq`: motion, `ta`: fit to the prompt, `overall`: their sum."""
    normalise: bool = True
    """z-scores with the constants of the checkpoint's JSON, or the published ones; false: the head's raw outputs."""
    rubric: str | None = None
    """Text file with the question."""
    fps: float | None = Field(default=None, gt=0)
    """Frames per second that are looked at; default: what the checkpoint's JSON says, or 2."""
    min_pixels: int = Field(default=128 * 28 * 28, ge=28 * 28)
    """Per frame; smaller frames are enlarged."""
    max_pixels: int | None = Field(default=None, ge=28 * 28)
    """Per frame; default: what the checkpoint's JSON says, or 200704."""
    grey: bool = False
    """Motion quality on a greyscale copy (GenRL), so that colours cannot please it."""
    grey_fps: float | None = Field(default=8.0, gt=0)
    """Frames per second that the greyscale copy is taken to have; null: the video's own."""

    tokens = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")

    _config: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _bounds(self) -> VideoAlign:
        if self.max_pixels is not None and self.max_pixels < self.min_pixels:
            raise ValueError(f"max_pixels {self.max_pixels} is less than min_pixels {self.min_pixels}")
        return self

    def read_rubrics(self) -> tuple[Rubric, ...]:
        self._config.clear()
        self._config.update(read_config(self._config_file()))
        return (read_rubric("video_align", self.rubric, self._config_file(), "rubric.txt", self.tokens),)

    def _config_file(self) -> str:
        """Of a hub id the JSON in it; of a folder, or a weight file's folder, that in it or one folder above."""
        local = Path(self.path)
        if local.exists():
            folder = local if local.is_dir() else local.parent
            near = [one / CONFIG for one in (folder, folder.absolute().parent)]
            return str(next((one for one in near if one.is_file()), near[0]))
        return file_of(self.path, CONFIG, self.hub_revision)

    def adapter(self, own: Mapping[str, Any]) -> tuple[Any, bool]:
        said = self._config["peft_lora_config"]
        for key in ("lora_alpha", "use_rslora"):
            if key in said and key in own and said[key] != own[key]:
                raise UserError(f"'{CONFIG}' says {key} is {said[key]!r}, and '{ADAPTER_CONFIG}' {own[key]!r}")
        alpha, rank_root = super().adapter({**said, **own})
        return ALPHA if alpha is None else alpha, rank_root

    def make_head(self, width: int, state: dict[str, Tensor], file: str) -> nn.Module:
        outputs = len(state["weight"]) if "weight" in state else 1
        if outputs not in (1, 3):
            raise UserError(f"'{file}' has a head of {outputs} outputs; expected 1, or 3 (one per axis)")
        return nn.Linear(width, outputs, bias=False)

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """One number per sample; the axes that were looked at are left as its parts. Raises ValueError for a video of one frame or
        without `meta["fps"]`."""
        found: dict[str, Tensor] = {}
        wanted = AXES if self.of == "overall" else (self.of,)
        for grey in (False, True):
            axes = [axis for axis in AXES if grey == (self.grey and axis == "mq")]
            if not set(axes).isdisjoint(wanted):
                outputs = self._outputs([self._row(sample, grey) for sample in samples])
                found |= {axis: self._normalised(axis, outputs[:, AXES.index(axis)]) for axis in axes}
        total = torch.stack([found[axis] for axis in wanted]).sum(0)
        parts = {axis: values.cpu().tolist() for axis, values in found.items()}
        for row, sample in enumerate(samples):
            sample.meta["components"] = {axis: values[row] for axis, values in parts.items()}
        return total.cpu().tolist()

    def _outputs(self, rows: Sequence[Row]) -> Tensor:
        """The three axes `(B, 3)`, each read at its own token."""
        out = self._model.head(self.hidden(rows))  # (B, 3, 1) or (B, 3, 3)
        return out[..., 0] if out.shape[-1] == 1 else out.diagonal(dim1=1, dim2=2)

    def _normalised(self, axis: str, values: Tensor) -> Tensor:
        if not self.normalise:
            return values
        mean, std = constants(self._config)[axis]
        return (values - mean) / std

    def _row(self, sample: Sample, grey: bool) -> Row:
        video = sample.video
        if video is None or video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or not video.size:
            raise ValueError("expected a uint8 RGB video (T, H, W, 3)")
        rate = frame_rate(sample)
        if grey:
            video, rate = greyscale(video), self.grey_fps or rate
        data = self._config.get("data_config", {})
        chosen = frame_numbers(len(video), rate, self.fps or data.get("fps", 2.0))
        high = self.max_pixels or data.get("max_frame_pixels", 200704)
        shown = sized_frames(video[chosen], self.factor, self.min_pixels, high)
        return Row(self.question(sample.prompt.text), (), shown)


def frame_numbers(total: int, rate: float, fps: float) -> list[int]:
    """Which of `total` frames at `rate` per second are looked at: `fps` per second, an even number, 4 to 768 or as many as there are,
    at `round(linspace(0, total - 1, n))`. Raises ValueError for fewer than two frames.

    Source: `smart_nframes` of qwen-vl-utils and VideoAlign's `vision_process.py`.
    """
    if total < STEP:
        raise ValueError(f"a video of {total} frames; expected {STEP} or more")
    most = min(MOST, total) // STEP * STEP
    number = round(min(max(total / rate * fps, LEAST), most) / STEP) * STEP
    return torch.linspace(0, total - 1, number).round().long().tolist()


def greyscale(video: np.ndarray) -> np.ndarray:
    """Luminance (0.299, 0.587, 0.114) of uint8 frames (T, H, W, 3), on all three channels."""
    grey = np.rint(video.astype(np.float64) @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def read_config(path: str) -> dict[str, Any]:
    """A checkpoint's `model_config.json`. Raises UserError for another kind of file, or for a model that is read in another way."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"video_align needs '{CONFIG}' of its checkpoint: there is no '{path}'")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"'{path}' is no JSON: {error}") from error
    if not isinstance(config, Mapping):
        raise UserError(f"'{path}' holds a {type(config).__name__}; expected an object")
    parts = {name: dict(config.get(name) or {}) for name in ("data_config", "model_config", "peft_lora_config")}
    expected = (
        ("data_config", "sample_type", "uniform"),
        ("data_config", "num_frames", None),
        ("data_config", "prompt_template_type", "detailed_special"),
        ("model_config", "use_special_tokens", True),
    )
    for part, key, value in expected:
        if parts[part].get(key, value) != value:
            raise UserError(f"'{path}' says {part}.{key} is {parts[part][key]!r}; only {value!r} can be read here")
    found = {**parts, "inference_config": config.get("inference_config")}
    constants(found, path)
    return found


def constants(config: Mapping[str, Any], path: str = CONFIG) -> dict[str, tuple[float, float]]:
    """(mean, std) of each axis: the checkpoint's own (`inference_config`), else the published ones. Raises UserError for a part of them."""
    own = config.get("inference_config")
    if own is None:
        return MEAN_STD
    try:
        found = {axis: (float(own[f"{axis.upper()}_mean"]), float(own[f"{axis.upper()}_std"])) for axis in AXES}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"'{path}' has an inference_config without a mean and a std of every axis: {error!r}"
        ) from error
    if any(std <= 0 for _, std in found.values()):
        raise UserError(f"'{path}' has an inference_config with a std that is not positive")
    return found
