"""EditReward: a Qwen2.5-VL that scores an edited picture beside its source, in two passes with a head each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from mmrl.errors import UserError
from mmrl.image import read_image
from mmrl.media import is_image
from mmrl.reward import rgb
from mmrl.rewards.preference.headed import Headed, means, two_outputs
from mmrl.rewards.preference.headed_inputs import Row, sized_picture
from mmrl.rewards.preference.rubric import Rubric, read_rubric
from mmrl.rollout import Prompt, Sample

PASSES = {"multi": ("following", "quality"), "shared": ("following", "quality"), "single": ("overall",)}
"""What the passes ask for, by `head`: is the instruction followed, is the picture good, or both at once."""


class EditReward(Headed):
    """EditReward: how well an edit follows its instruction and how good it looks, unbounded; the pooled means of two heads.

    Source: Wu et al. 2025 (arXiv 2509.26346). `path` holds `model.safetensors`; the prompt's only picture is the source, the prompt the
    instruction. The questions of the passes are text files (default: `rubric_following.txt` and `rubric_quality.txt` beside the
    weights, or `rubric_overall.txt` for a single pass), each with `{prompt}` and one `<|Reward|>`.
    """

    needs = ("image", "source")
    licence = "MIT (code); weights: unknown"
    path: str = "TIGER-Lab/EditReward-Qwen2.5-VL-7B"
    file: str = "model.safetensors"
    base: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    head: Literal["multi", "shared", "single"] = "multi"
    """The original's `rm_head_type`: `ranknet_multi_head` (two passes, a head each), `ranknet_share_head` (two passes, one head) or
    `ranknet` (one pass)."""
    pooling: Literal["mean", "min", "sum"] = "mean"
    """Of the two passes."""
    following: str | None = None
    """Text file with the question of the first pass."""
    quality: str | None = None
    """Text file with the question of the second pass."""
    overall: str | None = None
    """Text file with the question of a single pass."""
    pixels: int = Field(default=256 * 28 * 28, ge=28 * 28)
    """Both pictures are resized to about so many."""

    def check_prompt(self, prompt: Prompt) -> None:
        """Raises ValueError for a prompt of several media, or one that holds a special token."""
        super().check_prompt(prompt)
        source_of(prompt)

    @property
    def passes(self) -> tuple[str, ...]:
        """Names of the passes, and of the options with their questions."""
        return PASSES[self.head]

    def read_rubrics(self) -> tuple[Rubric, ...]:
        return tuple(
            read_rubric(
                f"edit_reward (option {name})", getattr(self, name), self.path, f"rubric_{name}.txt", self.tokens
            )
            for name in self.passes
        )

    def make_head(self, width: int, state: dict[str, Tensor], file: str) -> nn.Module:
        held = sorted({name.partition(".")[0] for name in state if name.startswith("head_")})
        wanted = ["head_0", "head_1"] if self.head == "multi" else []
        if held != wanted:
            what = f"rm_heads with {', '.join(held)}" if held else "one rm_head"
            raise UserError(
                f"'{file}' holds {what}, and head is '{self.head}': multi reads head_0 and head_1, shared and single one rm_head"
            )
        return nn.ModuleDict({name: two_outputs(width) for name in held}) if held else two_outputs(width)

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
        count = len(self.passes)
        rows = [
            Row(self.question(prompt, k), (source, edited)) for k in range(count) for source, edited, prompt in pairs
        ]
        hidden = self.hidden(rows)[:, 0].reshape(count, len(pairs), -1)
        heads = [self._model.head[f"head_{k}"] if self.head == "multi" else self._model.head for k in range(count)]
        return pooled([head(one)[:, 0] for head, one in zip(heads, hidden, strict=True)], self.pooling)

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
