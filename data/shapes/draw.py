"""Scene -> picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mmrl.data.shapes.world import BACKGROUND, CANVAS, GLYPHS, PALETTE, Scene


def blank(*lead: int) -> np.ndarray:
    """Empty pictures: uint8 (*lead, 24, 24, 3)."""
    return np.broadcast_to(np.array(BACKGROUND, dtype=np.uint8), (*lead, CANVAS, CANVAS, 3)).copy()


def paint(canvas: np.ndarray, color: str, shape: str, left: int, top: int) -> None:
    """Put a glyph on a picture (H, W, 3), its top left corner at (left, top). It must lie inside."""
    mask = GLYPHS[shape]
    height, width = mask.shape
    canvas[top : top + height, left : left + width][mask] = PALETTE[color]


def render(scene: Scene) -> np.ndarray:
    """The picture of a scene: uint8 (24, 24, 3), no anti-aliasing."""
    canvas = blank()
    for item in scene.items:
        paint(canvas, item.color, item.shape, item.left, item.top)
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
