"""HPSv3: a Qwen2-VL that scores a picture for its prompt, and frames of a video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from mmrl.reward import Need, rgb
from mmrl.rewards.preference.headed import Headed, means, two_outputs
from mmrl.rewards.preference.headed_inputs import Row, sized_picture
from mmrl.rewards.preference.rubric import Rubric, read_rubric
from mmrl.rollout import Sample

BEST = 0.3
"""Share of a video's frames that count in `video: best`."""


class HpsV3(Headed):
    """HPSv3: how good a picture is for its prompt, unbounded, usually 0 to 15; the mean of the two outputs of its head, the first.

    Source: Ma et al. 2025 (arXiv 2508.03789). `path` holds `HPSv3.safetensors`; several pictures are averaged. The question that
    it was trained with is a text file `rubric` (default: `rubric.txt` beside the weights) with `{prompt}` and one `<|Reward|>`.
    """

    takes = "image or video"
    licence = "MIT (code); weights: unknown"
    path: str = "MizzenAI/HPSv3"
    file: str = "HPSv3.safetensors"
    base: str = "Qwen/Qwen2-VL-7B-Instruct"
    rubric: str | None = None
    """Text file with the question."""
    pixels: int = Field(default=256 * 28 * 28, ge=28 * 28)
    """Every picture is resized to about so many."""
    video: Literal["mean", "best"] | None = None
    """Score videos instead of pictures: `mean` over all frames for the prompt `neutral`, or over the `best` 30 % of them for the
    sample's own prompt (GenRL)."""
    neutral: str = "A high-quality image"
    """`video: mean`: the prompt for which frames are scored."""
    every: int = Field(default=1, ge=1)
    """Videos: one of so many frames is looked at."""

    def inputs(self) -> tuple[Need, ...]:
        return ("image",) if self.video is None else ("video",)

    def read_rubrics(self) -> tuple[Rubric, ...]:
        return (read_rubric("hpsv3", self.rubric, self.path, "rubric.txt", self.tokens),)

    def make_head(self, width: int, state: dict[str, Tensor], file: str) -> nn.Module:
        return two_outputs(width)

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """None for a sample without what is scored (pictures, or a video). Leaves as a part of the score `log_sigma`, the second output:
        the logarithm of the standard deviation that training gave the score (averaged as the score is)."""
        owners: list[int] = []
        rows: list[Row] = []
        for number, sample in enumerate(samples):
            prompt = self.neutral if self.video == "mean" else sample.prompt.text
            for picture in self._shown(sample):
                owners.append(number)
                rows.append(self._row(rgb(picture), prompt))
        if not rows:
            return [None] * len(samples)
        values, spreads = self._model.head(self.hidden(rows)[:, 0]).T.cpu().tolist()
        if self.video == "best":
            kept = best(owners, values, BEST)
            owners, values, spreads = ([each[k] for k in kept] for each in (owners, values, spreads))
        for sample, spread in zip(samples, means(owners, spreads, len(samples)), strict=True):
            if spread is not None:
                sample.meta["components"] = {"log_sigma": spread}
        return means(owners, values, len(samples))

    def _shown(self, sample: Sample) -> list[np.ndarray]:
        if self.video is None:
            return list(sample.images)
        if sample.video is not None and sample.video.ndim == 4 and not len(sample.video):
            raise ValueError("the video has no frames")
        return [] if sample.video is None else [np.asarray(frame) for frame in sample.video[:: self.every]]

    def _row(self, picture: np.ndarray, prompt: str) -> Row:
        return Row(self.question(prompt), (sized_picture(picture, self.factor, self.pixels, self.pixels),))


def best(owners: Sequence[int], values: Sequence[float], share: float) -> list[int]:
    """Of each owner the places of its largest values, `max(1, floor(share n))` of its n."""
    kept: list[int] = []
    for owner in dict.fromkeys(owners):
        own = sorted((k for k, one in enumerate(owners) if one == owner), key=lambda k: -values[k])
        kept += own[: max(1, int(len(own) * share))]
    return sorted(kept)
