"""EditReward: a Qwen2.5-VL that scores an edited picture beside its source, in two passes with a head each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from mmrl.image import read_image
from mmrl.media import is_image
from mmrl.reward import rgb
from mmrl.rewards.preference.headed import Headed, means, two_outputs
from mmrl.rewards.preference.headed_inputs import Row, sized_picture
from mmrl.rewards.preference.rubric import Rubric, read_rubric
from mmrl.rollout import Prompt, Sample

PASSES = ("following", "quality")
"""What the passes ask for: is the instruction followed, and is the picture good."""


class EditReward(Headed):
    """EditReward: how well an edit follows its instruction and how good it looks, unbounded; the pooled means of two heads.

    Source: Wu et al. 2025 (arXiv 2509.26346). `path` holds `model.safetensors`; the prompt's only picture is the source, the prompt the
    instruction. The questions of the two passes are text files (default: `rubric_following.txt` and `rubric_quality.txt` beside the
    weights), each with `{prompt}` and one `<|Reward|>`.
    """

    needs = ("image", "source")
    licence = "MIT (code); weights: unknown"
    path: str = "TIGER-Lab/EditReward-Qwen2.5-VL-7B"
    file: str = "model.safetensors"
    base: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    pooling: Literal["mean", "min", "sum"] = "mean"
    """Of the two passes."""
    following: str | None = None
    """Text file with the question of the first pass."""
    quality: str | None = None
    """Text file with the question of the second pass."""
    pixels: int = Field(default=256 * 28 * 28, ge=28 * 28)
    """Both pictures are resized to about so many."""

    def check_prompt(self, prompt: Prompt) -> None:
        """Raises ValueError for a prompt of several media, or one that holds a special token."""
        super().check_prompt(prompt)
        source_of(prompt)

    def read_rubrics(self) -> tuple[Rubric, ...]:
        given = (self.following, self.quality)
        return tuple(
            read_rubric(f"edit_reward (option {name})", own, self.path, f"rubric_{name}.txt", self.tokens)
            for name, own in zip(PASSES, given, strict=True)
        )

    def make_head(self, width: int, state: dict[str, Tensor], file: str) -> nn.Module:
        return nn.ModuleDict({f"head_{k}": two_outputs(width) for k in range(len(PASSES))})

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """Several pictures are averaged; None for a prompt without a source. Raises ValueError for several sources."""
        owners: list[int] = []
        pairs: list[tuple[np.ndarray, np.ndarray, str]] = []
        for number, sample in enumerate(samples):
            source = source_of(sample.prompt)
            if source is None:
                continue
            source = source if isinstance(source, np.ndarray) else read_image(Path(source))
            for image in sample.images:
                owners.append(number)
                pairs.append((self._sized(rgb(source)), self._sized(rgb(image)), sample.prompt.text))
        if not pairs:
            return [None] * len(samples)
        return means(owners, self._pooled(pairs).cpu().tolist(), len(samples))

    def _pooled(self, pairs: Sequence[tuple[np.ndarray, np.ndarray, str]]) -> Tensor:
        """Scores `(B,)` of (source, edited, instruction)."""
        rows = [
            Row(self.question(prompt, k), (source, edited))
            for k in range(len(PASSES))
            for source, edited, prompt in pairs
        ]
        hidden = self.hidden(rows)[:, 0].reshape(len(PASSES), len(pairs), -1)
        mean = [self._model.head[f"head_{k}"](hidden[k])[:, 0] for k in range(len(PASSES))]
        return pooled(mean, self.pooling)

    def _sized(self, picture: np.ndarray) -> np.ndarray:
        return sized_picture(picture, self.factor, self.pixels, self.pixels)


def pooled(values: Sequence[Tensor], how: str) -> Tensor:
    """Mean, smallest or sum of the passes' values `(B,)` each."""
    stacked = torch.stack(list(values))
    if how == "min":
        return stacked.amin(0)
    return stacked.mean(0) if how == "mean" else stacked.sum(0)


def source_of(prompt: Prompt) -> Any:
    """The picture that is edited, an array or a file's name; None where the prompt has no media. Raises ValueError for anything but one
    picture."""
    media = prompt.media
    if not media:
        return None
    if len(media) != 1 or not is_image(media[0]):
        raise ValueError(f"prompt '{prompt.id}' has {len(media)} media; expected one picture, the source of the edit")
    return media[0]
