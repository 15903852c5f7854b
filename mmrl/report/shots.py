"""The samples of one evaluation as files: a contact sheet, what was said of each of them, and what the prompts show."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl.folder import write_json
from mmrl.report.grid import save_grid
from mmrl.tiles import Tile

if TYPE_CHECKING:
    from mmrl.evaluate import Picture

MEDIA = "media"
"""The folder, beside the sheets, of the pictures that prompts show; equal ones are stored once."""


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
    if picture.media:
        entry["media"] = [
            [{"file": _stored(tile, folder), "label": tile.label} for tile in row] for row in picture.media
        ]
    return entry


def _stored(tile: Tile, folder: Path) -> str:
    """The name below `folder` of a tile's picture, whose pixels name it."""
    pixels = hashlib.sha256(repr(tile.image.size).encode() + tile.image.tobytes()).hexdigest()[:16]
    name = f"{MEDIA}/{pixels}.png"
    path = folder / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        tile.image.save(temporary, format="PNG", optimize=True)
        temporary.replace(path)
    return name
