"""How small or large an image is as a JPEG file: cheap rewards with a known optimum, for trying out a run."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from pydantic import Field

from mmrl.reward import Reward, rgb
from mmrl.rollout import Sample


def jpeg_kilobytes(image: np.ndarray, quality: int = 95) -> float:
    """Size in kB (1000 bytes) of a uint8 RGB image (H, W, 3) as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(rgb(image)).save(buffer, format="JPEG", quality=quality)
    return buffer.tell() / 1000


class JpegSize(Reward):
    """Base: kB / 500 as JPEG; several images of one sample are averaged."""

    needs = ("image",)
    licence = "Apache-2.0"
    quality: int = Field(default=95, ge=1, le=100)
    """JPEG quality; a higher one makes larger files."""

    def size(self, sample: Sample) -> float:
        """kB / 500. Raises ValueError for an image that is not uint8 RGB."""
        return float(np.mean([jpeg_kilobytes(image, self.quality) for image in sample.images])) / 500


class JpegCompressibility(JpegSize):
    """-kB / 500 at JPEG quality 95: flat pictures score best."""

    range = (None, 0.0)

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """One number per sample."""
        return [-self.size(sample) for sample in samples]


class JpegIncompressibility(JpegSize):
    """kB / 500 at JPEG quality 95: detailed pictures score best."""

    range = (0.0, None)

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """One number per sample."""
        return [self.size(sample) for sample in samples]
