"""The samples of one evaluation as files: a contact sheet, what was said of each of them, what the prompts show, and videos as
animated pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl.animation import animated
from mmrl.folder import write_json, write_named
from mmrl.report.grid import save_grid
from mmrl.tiles import Tile

if TYPE_CHECKING:
    from mmrl.evaluate import Picture

MEDIA = "media"
"""The folder, beside the sheets, of the pictures that prompts show and of videos; equal ones are stored once."""


def save_pictures(pictures: Sequence[Picture], folder: Path, name: str) -> None:
    """Write `NAME.png`, `NAME.json` and what is new in `media/` into `folder`, each file in one step, the JSON last."""
    save_grid(pictures, folder / f"{name}.png")
    write_json(folder / f"{name}.json", [_entry(picture, folder) for picture in pictures])


def _entry(picture: Picture, folder: Path) -> Mapping[str, Any]:
    entry: dict[str, Any] = {"prompt": picture.prompt, "text": picture.text, "rewards": picture.rewards}
    if picture.answer is not None:
        entry["answer"] = picture.answer
    if picture.about:
        entry["about"] = picture.about
    if picture.video is not None:
        entry["video"] = write_named(animated(picture.video, picture.fps), "webp", folder, MEDIA)
    if picture.media:
        entry["media"] = [
            [{"file": write_named(_png(tile), "png", folder, MEDIA), "label": tile.label} for tile in row]
            for row in picture.media
        ]
    return entry


def _png(tile: Tile) -> bytes:
    file = io.BytesIO()
    tile.image.save(file, format="PNG", optimize=True)
    return file.getvalue()
