"""The verifier of the shapes world as a reward."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from mmrl.data.shapes.captions import Target, parse, write
from mmrl.data.shapes.verifier import TOLERANCE, Found, dense, detect_batch, exact, palette_distance, strict_batch
from mmrl.data.shapes.world import CANVAS
from mmrl.reward import Need, Reward, rgb
from mmrl.rollout import Sample


class ShapeReward(Reward):
    """Judges a 24 x 24 picture against `prompt.target`.

    dense   partial credit in [0, 1]
    exact   1 if the picture shows exactly what is described, else 0
    strict  exact with tight colours and a clean background; meant to be held out, never to be trained on
    clean   minus the mean distance of the pixels to the palette (0 is best); needs no target; meant to be held out
    """

    range = (-4.0, 1.0)
    needs = ("image",)
    licence = "Apache-2.0"
    mode: Literal["dense", "exact", "strict", "clean"] = "dense"
    tolerance: float = Field(default=TOLERANCE, gt=0)
    """Largest colour distance, per channel on [-1, 1], at which a pixel still belongs to a palette colour."""

    @model_validator(mode="after")
    def _tolerance_is_used(self) -> ShapeReward:
        if self.mode in ("strict", "clean") and self.tolerance != TOLERANCE:
            raise ValueError(f"mode '{self.mode}' has no tolerance to set; remove it or use dense or exact")
        return self

    def inputs(self) -> tuple[Need, ...]:
        """A picture, and for all modes but `clean` the target of its prompt."""
        return ("image",) if self.mode == "clean" else ("image", "target")

    def limits(self) -> tuple[float | None, float | None]:
        """[-4, 0] for clean, [0, 1] for the others."""
        return (-4.0, 0.0) if self.mode == "clean" else (0.0, 1.0)

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """One number per sample. Raises ValueError for a wrong picture, or a missing or foreign target."""
        images = np.stack([_picture(sample) for sample in samples])
        if self.mode == "clean":
            return [-palette_distance(image) for image in images]
        targets = [_target(sample) for sample in samples]
        if self.mode == "strict":
            return [float(right) for right in strict_batch(images, targets)]
        judge: Any = dense if self.mode == "dense" else exact
        found = _found(images.tobytes(), self.tolerance)
        return [float(judge(f, target)) for f, target in zip(found, targets, strict=True)]


@functools.lru_cache(maxsize=2)
def _found(pictures: bytes, tolerance: float) -> list[list[Found]]:
    """What is in uint8 pictures; remembered, as dense and exact are usually asked about the same ones in a row."""
    return detect_batch(np.frombuffer(pictures, dtype=np.uint8).reshape(-1, CANVAS, CANVAS, 3), tolerance)


def _picture(sample: Sample) -> np.ndarray:
    if len(sample.images) != 1 or rgb(sample.images[0]).shape[:2] != (CANVAS, CANVAS):
        sizes = ", ".join("x".join(str(side) for side in rgb(image).shape[:2]) for image in sample.images)
        raise ValueError(f"expected one {CANVAS}x{CANVAS} picture, got {sizes or 'none'}")
    return sample.images[0]


def _target(sample: Sample) -> Target:
    target = sample.prompt.target
    if target is None:
        raise ValueError(
            f"prompt '{sample.prompt.id}' has no target; the shapes verifier needs prompts of the shapes source"
        )
    try:
        if parse(write(target)) == target:
            return target
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(f"prompt '{sample.prompt.id}' has no target of the shapes world: {target!r}")
