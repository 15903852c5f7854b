"""Pictures side by side: what a prompt shows, as small images with a word below them, and their layout in rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from mmrl.errors import UserError
from mmrl.image import read_image
from mmrl.video import open_video, spread

FRAMES = 8
"""Frames shown of a video; of several videos fewer, but at least 4 each."""
SCALES = (8, 6, 5, 4, 3, 2, 1, 0.75, 0.5, 0.375, 0.25, 0.125, 0.0625)
LINE, GAP = 16, 4
"""Pixels of a line of text, and between tiles."""
PAPER, FAINT = "#ffffff", "#667079"


@dataclass
class Tile:
    """One picture of a card, with a word below it (the time of a frame) or none."""

    image: Image.Image
    label: str = ""


def groups_of(media: Sequence[Any], fps: Any) -> list[list[Tile]]:
    """Every video as a group of frames, and the images between two videos as one group."""
    groups: list[list[Tile]] = []
    images: list[Tile] | None = None
    frames = max(4, FRAMES // max(1, len(media)))
    for item in media:
        found = opened(item, fps, frames)
        if isinstance(found, Tile):
            if images is None:
                images = []
                groups.append(images)
            images.append(found)
        else:
            groups.append(found)
            images = None
    return groups


def beside(given: Sequence[Sequence[Tile]], made: Sequence[Sequence[Tile]]) -> list[list[Tile]]:
    """What a prompt shows and what is (to be) made of it, told apart by words: in one group, frames of a video in their own."""
    if not (given and made):
        return [list(group) for group in (*given, *made)]
    groups: list[list[Tile]] = [[]]
    for word, found in (("given", given), ("made", made)):
        for group in found:
            if any(tile.label for tile in group):
                groups.append(list(group))
            else:
                groups[0] += [Tile(tile.image, word) for tile in group]
    return [group for group in groups if group]


def opened(media: Any, fps: Any, frames: int) -> Tile | list[Tile]:
    """An image, or `frames` frames of a video, from an array or a file. Raises UserError for a file that is neither."""
    if isinstance(media, np.ndarray):
        return _frames(media, fps, frames) if media.ndim == 4 else Tile(Image.fromarray(media))
    path = Path(media)
    if not path.is_file():
        raise UserError(
            f"{path.absolute()} is a folder; expected a file" if path.is_dir() else f"no file {path.absolute()}"
        )
    try:
        Image.open(path).close()
    except UnidentifiedImageError:
        return video_file(path, frames)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        pass  # said below
    return Tile(Image.fromarray(read_image(path)))


def video_file(path: Path, frames: int) -> list[Tile]:
    """`frames` frames of a video, the first and the last among them. Raises UserError for a file that is none."""
    try:
        video = open_video(path)
        kept = spread(video.total, min(frames, video.total))
        return _labelled(video.frames(kept), kept, video.fps)
    except UserError as error:
        raise UserError(f"{path.name} is no picture, and {error}") from None


def _frames(video: np.ndarray, fps: Any, frames: int) -> list[Tile]:
    kept = spread(len(video), min(frames, len(video))) if len(video) else []
    return _labelled(video[kept], kept, fps)


def _labelled(frames: np.ndarray, positions: Sequence[int], fps: Any) -> list[Tile]:
    labels = [f"{position / fps:.2f} s" if fps else f"frame {position + 1}" for position in positions]
    return [Tile(Image.fromarray(frame), label) for frame, label in zip(frames, labels, strict=True)]


def flow(groups: Sequence[Sequence[Tile]], width: int) -> list[list[Tile]]:
    """Tiles in rows, every group in rows of its own, at the largest common scale at which no row is wider than `width`
    and all together are hardly taller than wide."""
    most = max((tile.image.width for group in groups for tile in group), default=1)
    for scale in (*(scale for scale in SCALES if scale * most <= width), width / most):
        rows = [row for group in groups for row in _rows(group, scale, width)]
        tall = sum(max(tile.image.height for tile in row) * scale for row in rows)
        if tall <= 1.1 * width or scale == SCALES[-1]:
            break
    return [[_scaled(tile, scale) for tile in row] for row in rows]


def row_height(row: Sequence[Tile]) -> int:
    """Pixels of a row of `flow`, its labels and the space below it included."""
    return max(tile.image.height for tile in row) + (LINE if any(tile.label for tile in row) else 0) + GAP


def draw_row(page: Image.Image, row: Sequence[Tile], x: int, y: int) -> None:
    """Put the tiles of a row of `flow`, and their labels, on a page."""
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for tile in row:
        page.paste(tile.image, (x, y))
        draw.text((x, y + tile.image.height), tile.label, fill=FAINT, font=font)
        x += tile.image.width + GAP


def mosaic(rows: Sequence[Sequence[Tile]]) -> Image.Image:
    """The rows of `flow` as one picture."""
    width = max(sum(tile.image.width + GAP for tile in row) - GAP for row in rows)
    page = Image.new("RGB", (width, sum(row_height(row) for row in rows) - GAP), PAPER)
    y = 0
    for row in rows:
        draw_row(page, row, 0, y)
        y += row_height(row)
    return page


def _rows(tiles: Sequence[Tile], scale: float, width: int) -> list[list[Tile]]:
    rows: list[list[Tile]] = []
    room = 0
    for tile in tiles:
        wide = max(1, round(tile.image.width * scale)) + GAP
        if wide > room:
            rows.append([])
            room = width + GAP
        rows[-1].append(tile)
        room -= wide
    return rows


def _scaled(tile: Tile, scale: float) -> Tile:
    size = (max(1, round(tile.image.width * scale)), max(1, round(tile.image.height * scale)))
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return Tile(tile.image.resize(size, how), tile.label)


def within(image: Image.Image, side: int) -> Image.Image:
    """The image itself, or shrunk so that no side is longer than `side`."""
    if max(image.size) <= side:
        return image
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)
