"""The verifier of moving shapes as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from mmrl.data.moving_shapes.captions import Target, parse, wanted, write
from mmrl.data.moving_shapes.verifier import judge
from mmrl.data.shapes.reward import WorldReward, found_in, target_of
from mmrl.data.shapes.verifier import detect_strictly, palette_distance
from mmrl.data.shapes.world import CANVAS
from mmrl.rollout import Sample


class MovingShapesReward(WorldReward):
    """Judges a 24 x 24 video of at least 2 frames against `prompt.target`.

    dense   half for what is seen, half for how it moves, in [0, 1]
    exact   1 if the video shows exactly what is described, else 0
    strict  exact with tight colours and a clean background in every frame; meant to be held out, never to be trained on
    clean   minus the mean distance of the pixels to the palette (0 is best); needs no target; meant to be held out
    """

    needs = ("video",)
    mode: Literal["dense", "exact", "strict", "clean"] = "dense"

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """One number per sample. Raises ValueError for a wrong video, or a missing or foreign target."""
        videos = [_video(sample) for sample in samples]
        if self.mode == "clean":
            return [-palette_distance(video) for video in videos]
        targets = [_target(sample) for sample in samples]
        frames = np.concatenate(videos)
        dirty = np.zeros(len(frames), dtype=bool)
        if self.mode == "strict":
            found, dirty = detect_strictly(frames)
        else:
            found = found_in(frames.tobytes(), self.tolerance)
        scores: list[float | None] = []
        end = 0
        for video, target in zip(videos, targets, strict=True):
            start, end = end, end + len(video)
            verdict = judge(found[start:end], target)
            right = verdict.right and not dirty[start:end].any()
            scores.append(verdict.dense if self.mode == "dense" else float(right))
        return scores


def _video(sample: Sample) -> np.ndarray:
    video: Any = sample.video
    if video.dtype == np.uint8 and video.shape[1:] == (CANVAS, CANVAS, 3) and len(video) >= 2:
        found: np.ndarray = video
        return found
    raise ValueError(f"expected a uint8 video (2 or more, {CANVAS}, {CANVAS}, 3), got {video.dtype} {video.shape}")


def _target(sample: Sample) -> Target:
    found: Target = target_of(sample, "moving_shapes", _fits)
    return found


def _fits(target: Any) -> bool:
    plain = {key: value for key, value in target.items() if key != "start"}
    start = target.get("start")
    return parse(write(plain)) == plain and (start is None or np.shape(start) == (len(wanted(plain)), 2))
