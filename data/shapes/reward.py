"""The verifier of the shapes world as a reward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from mmrl.data.shapes.captions import Target, parse, write
from mmrl.data.shapes.verifier import TOLERANCE, Found, dense, detect_batch, exact, palette_distance, strict_batch
from mmrl.data.shapes.world import CANVAS
from mmrl.reward import Need, Reward, rgb
from mmrl.reward.pairwise import PairwiseReward, Verdict
from mmrl.rollout import Sample


class WorldReward(Reward):
    """Base of the verifiers of drawn worlds: modes from soft to hard, and how far a colour may be off."""

    range = (-4.0, 1.0)
    licence = "Apache-2.0"
    mode: str = "dense"
    """What a score says: the class text above has the modes."""
    tolerance: float = Field(default=TOLERANCE, gt=0)
    """Largest colour distance, per channel on [-1, 1], at which a pixel still belongs to a palette colour."""

    @model_validator(mode="after")
    def _tolerance_is_used(self) -> WorldReward:
        if self.mode in ("strict", "clean") and self.tolerance != TOLERANCE:
            raise ValueError(f"mode '{self.mode}' has no tolerance to set; remove it or use dense or exact")
        return self

    def inputs(self) -> tuple[Need, ...]:
        """What is looked at, and for all modes but `clean` the target of its prompt."""
        return self.needs if self.mode == "clean" else (*self.needs, "target")

    def limits(self) -> tuple[float | None, float | None]:
        """[-4, 0] for clean, [0, 1] for the others."""
        return (-4.0, 0.0) if self.mode == "clean" else (0.0, 1.0)


class ShapeReward(WorldReward):
    """Judges a 24 x 24 picture against `prompt.target`.

    dense   partial credit in [0, 1]
    exact   1 if the picture shows exactly what is described, else 0
    strict  exact with tight colours and a clean background; meant to be held out, never to be trained on
    clean   minus the mean distance of the pixels to the palette (0 is best); needs no target; meant to be held out
    """

    needs = ("image",)
    mode: Literal["dense", "exact", "strict", "clean"] = "dense"

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """One number per sample. Raises ValueError for a wrong picture, or a missing or foreign target."""
        images = np.stack([picture(sample) for sample in samples])
        if self.mode == "clean":
            return [-palette_distance(image) for image in images]
        targets = [_target(sample) for sample in samples]
        if self.mode == "strict":
            return [float(right) for right in strict_batch(images, targets)]
        judge: Any = dense if self.mode == "dense" else exact
        found = found_in(images.tobytes(), self.tolerance)
        return [float(judge(f, target)) for f, target in zip(found, targets, strict=True)]


class ShapePairs(PairwiseReward):
    """Win rate of a picture among those of its group: the one that the dense verifier credits with more is the better, and within `margin`
    it is a tie. For trying out pairwise rewards without a judge."""

    needs = ("image", "target")
    licence = "Apache-2.0"
    margin: float = Field(default=0.02, ge=0)
    """Largest difference of the dense credit (0 to 1) that is a tie."""

    def compare(self, pairs: Sequence[tuple[Sample, Sample]]) -> list[Verdict]:
        judge = ShapeReward(mode="dense")
        first, second = (judge.score([pair[k] for pair in pairs]) for k in (0, 1))
        differences = np.subtract(np.array(first, dtype=float), np.array(second, dtype=float))
        return [0.5 if abs(d) <= self.margin else float(d > 0) for d in differences]


@functools.lru_cache(maxsize=2)
def found_in(pictures: bytes, tolerance: float) -> list[list[Found]]:
    """What is in uint8 pictures; remembered, as dense and exact are usually asked about the same ones in a row."""
    return detect_batch(np.frombuffer(pictures, dtype=np.uint8).reshape(-1, CANVAS, CANVAS, 3), tolerance)


def picture(sample: Sample) -> np.ndarray:
    """The one 24 x 24 picture of a sample. Raises ValueError for another number or size."""
    if len(sample.images) != 1 or rgb(sample.images[0]).shape[:2] != (CANVAS, CANVAS):
        sizes = ", ".join("x".join(str(side) for side in rgb(image).shape[:2]) for image in sample.images)
        raise ValueError(f"expected one {CANVAS}x{CANVAS} picture, got {sizes or 'none'}")
    return sample.images[0]


def _target(sample: Sample) -> Target:
    return target_of(sample, "shapes", lambda target: parse(write(target)) == target)


def target_of(sample: Sample, world: str, fits: Callable[[Any], bool]) -> Any:
    """The target of a sample's prompt. Raises ValueError where there is none, or where it does not fit the world."""
    target = sample.prompt.target
    if target is None:
        raise ValueError(
            f"prompt '{sample.prompt.id}' has no target; the {world} verifier needs prompts of the {world} source"
        )
    try:
        if fits(target):
            return target
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(f"prompt '{sample.prompt.id}' has no target of the {world} world: {target!r}")
