"""Scene -> picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mmrl.data.shapes.world import BACKGROUND, CANVAS, GLYPHS, PALETTE, Scene


def render(scene: Scene) -> np.ndarray:
    """The picture of a scene: uint8 (24, 24, 3), no anti-aliasing."""
    canvas = np.empty((CANVAS, CANVAS, 3), dtype=np.uint8)
    canvas[:] = BACKGROUND
    for item in scene.items:
        mask = GLYPHS[item.shape]
        height, width = mask.shape
        canvas[item.top : item.top + height, item.left : item.left + width][mask] = PALETTE[item.color]
    return canvas


def sheet(images: np.ndarray, columns: int, zoom: int = 4, gap: int = 4) -> Image.Image:
    """A contact sheet of uint8 pictures (n, H, W, 3), row by row, each enlarged `zoom` times with hard pixel edges."""
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    step_y, step_x = height * zoom + gap, width * zoom + gap
    canvas = np.full((rows * step_y + gap, columns * step_x + gap, 3), 96, dtype=np.uint8)
    for index, image in enumerate(images):
        y, x = gap + index // columns * step_y, gap + index % columns * step_x
        canvas[y : y + height * zoom, x : x + width * zoom] = image.repeat(zoom, axis=0).repeat(zoom, axis=1)
    return Image.fromarray(canvas)
