"""A turned picture: by how many degrees?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from pydantic import Field

from mmrl.data.puzzles.answer import whole_number
from mmrl.data.puzzles.draw import add_noise
from mmrl.data.puzzles.puzzle import UNPARSED, Pictures, Puzzle, PuzzleMaker, Verdict
from mmrl.errors import UserError

STEPS: dict[int, int] = {1: 180, 2: 90, 3: 45, 4: 30}
NEAR = 0.5
"""Credit of a wrong angle before its distance is taken off."""
MAX_CORRELATION = 0.9
TRIES = 100
GREY = 128


class Rotation(PuzzleMaker):
    """A picture turned clockwise by a multiple of 180, 90, 45 or 30 degrees: by how many?

    Pictures that look the same when they are turned are passed over. A wrong angle, d degrees off, earns (1 - d / 180) / 2.
    """

    kind = "rotation"
    levels: ClassVar[Mapping[int, str]] = {
        level: f"turned by a multiple of {step} degrees" for level, step in STEPS.items()
    }
    chance: ClassVar[Mapping[int, float]] = {1: 1 / 2, 2: 3 / 8, 3: 5 / 16, 4: 7 / 24}

    size: int = Field(default=224, ge=16, le=2048)
    """Side of the pictures in pixels."""
    reference: bool = True
    """Show the upright picture first. Without it pictures need an up: photographs, scenes."""
    noise: float = Field(default=0.0, ge=0, le=128)
    """Standard deviation of the pixel noise, on the scale 0-255."""

    def make(self, rng: np.random.Generator, level: int, pictures: Pictures) -> Puzzle:
        """The upright picture (with `reference`) and the turned one, uint8 (size, size, 3); from level 3 on as discs."""
        self.check_level(level)
        step = STEPS[level]
        upright = self._picture(rng, pictures, step)
        angle = step * int(rng.integers(360 // step))
        shown = [turned(upright, 0, step), turned(upright, angle, step)][0 if self.reference else 1 :]
        what = (
            "Picture 1: <image>\nPicture 2: <image>\nPicture 1 was turned clockwise to give picture 2."
            if self.reference
            else "This picture was turned clockwise."
        )
        angles = [str(value) for value in range(0, 360, step)]
        question = f"{what} By how many degrees: {', '.join(angles[:-1])} or {angles[-1]}?"
        media = tuple(add_noise(picture, self.noise, rng) for picture in shown)
        rationale = (
            f"What was up now points {_points(angle)}."
            if angle % 90 == 0
            else f"What was up now points {angle} degrees clockwise from up."
        )
        return Puzzle(question, media, {"angle": angle, "step": step}, str(angle), {"rationale": rationale})

    def _picture(self, rng: np.random.Generator, pictures: Pictures, step: int) -> np.ndarray:
        for _ in range(TRIES):
            picture = pictures.draw(rng, self.size)
            if symmetry(picture, step) <= MAX_CORRELATION:
                return picture
        raise UserError(
            f"puzzle 'rotation': {TRIES} pictures in a row look the same when they are turned; use pictures with an up"
        )

    @classmethod
    def verify(cls, target: Mapping[str, Any], answer: str) -> Verdict:
        """One of the angles asked for, perhaps with "degrees"; any other number is unparsed."""
        said = answer.casefold().rstrip(" .").removesuffix("degrees").removesuffix("°")
        angle = whole_number(said)
        if angle is None or not 0 <= angle < 360 or angle % target["step"]:
            return UNPARSED
        off = abs(angle - target["angle"])
        off = min(off, 360 - off)
        return Verdict(1.0, True) if off == 0 else Verdict(NEAR * (1 - off / 180), False)

    @classmethod
    def random_answer(cls, rng: np.random.Generator, target: Mapping[str, Any]) -> str:
        """Any of the angles."""
        return str(target["step"] * int(rng.integers(360 // target["step"])))


def turned(picture: np.ndarray, angle: int, step: int) -> np.ndarray:
    """The picture (H, H, 3) turned clockwise; for steps that are no quarter turns only a disc of it, on grey."""
    if step % 90 == 0:
        return np.ascontiguousarray(np.rot90(picture, -angle // 90))
    image = Image.fromarray(picture).rotate(-angle, Image.Resampling.BICUBIC)
    side = len(picture)
    y, x = np.mgrid[0:side, 0:side] + 0.5 - side / 2
    return np.where(((x**2 + y**2) <= (side / 2 - 1) ** 2)[..., None], np.asarray(image), np.uint8(GREY))


def symmetry(picture: np.ndarray, step: int) -> float:
    """Largest correlation of a picture (H, H, 3) with itself turned by a multiple of `step` degrees; 1 for a plain one."""
    disc = turned(picture, 0, step).astype(np.float64)
    spread = disc - disc.mean(axis=(0, 1))
    power = float((spread**2).sum())
    if power < picture.size:  # less than one grey level of contrast
        return 1.0
    others = (turned(picture, angle, step) - disc.mean(axis=(0, 1)) for angle in range(step, 360, step))
    return max(float((spread * other).sum()) for other in others) / power


def _points(angle: int) -> str:
    return {0: "up", 90: "right", 180: "down", 270: "left"}[angle]
