"""Cheap guards for video rewards: does anything move, and do neighbouring frames belong together?

Alone they are easily satisfied; beside a preference reward they keep a policy from standing still or from flickering.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PrivateAttr
from torch import Tensor

from mmrl.reward import Reward, frame_rate
from mmrl.rewards.preference.base import fill, tensors
from mmrl.rewards.preference.clip import ClipScore
from mmrl.rewards.preference.pixels import floats
from mmrl.rollout import Sample

RAFT_UNIT, RAFT_LEAST = 8, 128
"""RAFT takes sides that are multiples of 8, and at least 128."""


class Motion(Reward):
    """How much moves: the mean length of optical flow between neighbouring frames, in shares of the picture's diagonal per second, up to
    `enough`, where it is 1 (so that more motion is not better).

    Flow by torchvision's RAFT (small); `path` is a weight file, default: torchvision's published one.
    """

    range = (0.0, 1.0)
    needs = ("video",)
    licence = "BSD-3-Clause (torchvision)"
    path: str | None = None
    """File of RAFT's weights; default: torchvision's published ones."""
    enough: PositiveFloat = 0.1
    """Mean flow that scores 1, in diagonals of the picture per second."""
    max_pairs: int = Field(default=16, ge=1)
    """Pairs of neighbouring frames that are looked at, evenly over the video."""

    _flow: Any = PrivateAttr(default=None)
    _device: torch.device = PrivateAttr(default_factory=lambda: torch.device("cpu"))

    def setup(self, device: torch.device) -> None:
        """Load RAFT. Raises UserError for weights that do not fit."""
        from torchvision.models.optical_flow import Raft_Small_Weights, raft_small

        model = raft_small(weights=Raft_Small_Weights.DEFAULT if self.path is None else None)
        if self.path is not None:
            fill(model, tensors(self.path), self.path)
        self._flow, self._device = model.to(device).eval().requires_grad_(False), device

    def flow(self, first: Tensor, second: Tensor) -> Tensor:
        """Optical flow `(B, 2, H, W)` in pixels between frames `(B, 3, H, W)` in [0, 1]."""
        return self._flow(2 * first - 1, 2 * second - 1)[-1]

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """One number per sample. Raises ValueError for a video of one frame or without `meta["fps"]`."""
        return [self._score(sample) for sample in samples]

    @torch.inference_mode()
    def _score(self, sample: Sample) -> float:
        video, fps = sample.video, frame_rate(sample)
        assert video is not None
        if len(video) < 2:
            raise ValueError(f"motion needs two frames or more, got {len(video)}")
        pairs = np.unique(np.linspace(0, len(video) - 2, self.max_pairs).round().astype(int))
        frames = torch.stack(floats([video[k] for k in (*pairs, *(pairs + 1))], self._device))
        sized = _sized(frames)
        height, width = frames.shape[-2:]
        shrink = torch.tensor([width / sized.shape[-1], height / sized.shape[-2]], device=self._device)
        flow = self.flow(sized[: len(pairs)], sized[len(pairs) :]) * shrink[:, None, None]  # pixels of the video
        length = float(flow.norm(dim=1).mean())
        return float(np.minimum(length / np.hypot(height, width) * fps / self.enough, 1.0))  # NaN stays NaN


def _sized(frames: Tensor) -> Tensor:
    """Frames `(B, 3, H, W)` in a size that RAFT takes."""
    from torch.nn.functional import interpolate

    sides = [max(RAFT_LEAST, round(side / RAFT_UNIT) * RAFT_UNIT) for side in frames.shape[-2:]]
    if list(frames.shape[-2:]) == sides:
        return frames
    return interpolate(frames, size=sides, mode="bilinear", antialias=True)


class TemporalConsistency(Reward):
    """Do neighbouring frames belong together: mean cosine of their CLIP features; a still picture scores 1 (so pair it with motion)."""

    range = (-1.0, 1.0)
    needs = ("video",)
    licence = "MIT (openai/clip-vit-large-patch14)"
    path: str = "openai/clip-vit-large-patch14"
    """Hub id or folder of a CLIP."""
    batch_size: int = Field(default=32, ge=1)
    """Frames per forward pass; more take more memory."""

    _clip: Any = PrivateAttr(default=None)

    def setup(self, device: torch.device) -> None:
        """Load the CLIP."""
        self._clip = ClipScore(path=self.path)
        self._clip.setup(device)

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """One number per sample. Raises ValueError for a video of one frame."""
        return [self._score(sample) for sample in samples]

    @torch.inference_mode()
    def _score(self, sample: Sample) -> float:
        video = sample.video
        assert video is not None
        if len(video) < 2:
            raise ValueError("consistency needs two frames or more")
        parts = [
            self._clip.picture_features(floats(list(video[at : at + self.batch_size]), self._clip._device))
            for at in range(0, len(video), self.batch_size)
        ]
        features = torch.cat(parts).float()
        return float((features[1:] * features[:-1]).sum(-1).mean())
