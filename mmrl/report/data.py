"""What a run's folder says, read with patience: a missing or half-written file is a note in the report, not an error."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mmrl.folder import RunFolder
from mmrl.report.grid import cut_grid
from mmrl.report.shots import MEDIA
from mmrl.tiles import Tile

COUNTS = ("/failed", "/skipped")
"""Endings of the names that count rewards without a number."""


@dataclass(frozen=True)
class Shot:
    """One sample of a sheet: `image`, `video` (the file of an animated picture) or `text`, its prompt and its reward values
    (None = not scored); what the prompt shows, what would have been right, and kind and level of the prompt where they are
    known."""

    prompt: str
    image: Image.Image | None
    text: str | None
    rewards: dict[str, float | None]
    media: list[list[Tile]] = field(default_factory=list)
    answer: str | None = None
    about: str = ""
    video: bytes | None = None


@dataclass(frozen=True)
class Sheet:
    """The pictures of one evaluation. `whole` is the PNG itself where its pictures cannot be cut out."""

    total: int
    stage: str
    when: str
    shots: list[Shot]
    whole: Image.Image | None = None


@dataclass(frozen=True)
class Stage:
    """The metric lines of one stage: `steps` that trained, and every line with held-out numbers."""

    name: str
    kind: str
    planned: int | None
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]


@dataclass
class RunData:
    """A run's files in memory. `notes` are the things that could not be read."""

    path: Path
    config: dict[str, Any]
    config_text: str
    provenance: dict[str, Any]
    summary: dict[str, Any] | None
    stages: list[Stage]
    sheets: list[Sheet]
    notes: list[str] = field(default_factory=list)

    @property
    def held_out(self) -> list[str]:
        """Rewards of the evaluation that no stage trains on."""
        trained = {name for stage in mapping(self.config, "stages").values() for name in mapping(stage, "rewards")}
        return [name for name in mapping(self.config, "evaluation", "rewards") if name not in trained]


def mapping(tree: Any, *keys: str) -> dict[str, Any]:
    """The mapping at `keys` of a tree, or an empty one where there is none."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return dict(tree) if isinstance(tree, Mapping) else {}


def number(value: Any) -> float:
    """`value` as a float; NaN, which is drawn as a gap, for whatever is no finite number."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else math.nan


def read_run(folder: RunFolder) -> RunData:
    """Everything the report shows. Never raises for what a stopped or crashed run leaves behind."""
    notes: list[str] = []
    text = _text(folder.config, notes)
    config: Any = {}
    try:
        config = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        notes.append(f"config.yaml cannot be read: {str(error).splitlines()[0]}")
    provenance = _json(folder.provenance, notes)
    summary = _json(folder.summary, notes) if folder.summary.is_file() else None
    config = mapping(config)
    stages = _stages(config, _lines(folder, notes))
    return RunData(
        path=folder.path,
        config=config,
        config_text=text,
        provenance=mapping(provenance),
        summary=mapping(summary) or None,
        stages=stages,
        sheets=_sheets(folder.samples, notes),
        notes=notes,
    )


def _text(path: Path, notes: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        notes.append(f"{path.name} is missing or unreadable")
        return ""


def _json(path: Path, notes: list[str]) -> Any:
    text = _text(path, notes)
    try:
        return json.loads(text) if text else None
    except ValueError:
        notes.append(f"{path.name} is not complete JSON")
        return None


def _lines(folder: RunFolder, notes: list[str]) -> Iterator[dict[str, Any]]:
    if not folder.metrics.is_file():
        notes.append("metrics.jsonl is missing: no step was logged")
        return
    bad = 0
    with folder.metrics.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                bad += 1
                continue
            if isinstance(entry, dict) and math.isfinite(number(entry.get("step"))):
                yield entry
            else:
                bad += 1
    if bad:
        notes.append(f"metrics.jsonl: {bad} unreadable {'line' if bad == 1 else 'lines'} left out")


def _stages(config: dict[str, Any], lines: Iterator[dict[str, Any]]) -> list[Stage]:
    """Stages in the order of the config; those only metrics.jsonl knows come after."""
    by_name: dict[str, list[dict[str, Any]]] = {name: [] for name in mapping(config, "stages")}
    for line in lines:
        by_name.setdefault(str(line.get("stage", "run")), []).append(line)
    stages = []
    for name, mine in by_name.items():
        section = mapping(config, "stages", name)
        planned = section.get("steps")
        stages.append(
            Stage(
                name=name,
                kind=str(section.get("kind", "")),
                planned=planned if isinstance(planned, int) else None,
                steps=[line for line in mine if _trained(line)],
                evaluations=[line for line in mine if any(key.startswith("eval/") for key in line)],
            )
        )
    return stages


def _trained(line: Mapping[str, Any]) -> bool:
    """False for a line that an evaluation before or after a stage has written for itself."""
    return any(key not in ("stage", "step", "total", "time") and not key.startswith("eval/") for key in line)


def _sheets(folder: Path, notes: list[str]) -> list[Sheet]:
    sheets = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        found = re.fullmatch(r"(\d+)_(.+)_(before|during|after)", path.stem)
        entries = _json(path, notes)
        if found is None or not isinstance(entries, list):
            continue
        images, whole = _cut(path.with_suffix(".png"), notes)
        shots = [_shot(mapping(entry), images[index] if index < len(images) else None, folder, notes)
                 for index, entry in enumerate(entries)]  # fmt: skip
        sheets.append(Sheet(int(found[1]), found[2], found[3], shots, whole))
    return sheets


def _cut(path: Path, notes: list[str]) -> tuple[list[Image.Image | None], Image.Image | None]:
    try:
        images = cut_grid(path)
        if images is not None:
            return images, None
        with Image.open(path) as sheet:
            return [], sheet.convert("RGB")
    except (OSError, ValueError, TypeError, SyntaxError):
        notes.append(f"samples/{path.name} is missing or incomplete")
        return [], None


def _shot(entry: dict[str, Any], image: Image.Image | None, folder: Path, notes: list[str]) -> Shot:
    rewards = {
        str(name): None if math.isnan(number(value)) else number(value)
        for name, value in mapping(entry, "rewards").items()
    }
    text, answer, rows = entry.get("text"), entry.get("answer"), entry.get("media")
    media = [[tile for one in row if (tile := _tile(mapping(one), folder, notes)) is not None]
             for row in (rows if isinstance(rows, list) else []) if isinstance(row, list)]  # fmt: skip
    return Shot(
        prompt=str(entry.get("prompt", "")),
        image=image,
        text=None if text is None else str(text),
        rewards=rewards,
        media=[row for row in media if row],
        answer=None if answer is None else str(answer),
        about=str(entry.get("about", "")),
        video=_video(str(entry["video"]), folder, notes) if "video" in entry else None,
    )


def _video(name: str, folder: Path, notes: list[str]) -> bytes | None:
    """The file of a video."""
    found = _media(name, "webp", folder, notes)
    return None if found is None else found[0]


def _tile(entry: dict[str, Any], folder: Path, notes: list[str]) -> Tile | None:
    """A picture that a prompt shows."""
    found = _media(str(entry.get("file", "")), "png", folder, notes)
    return None if found is None else Tile(found[1], str(entry.get("label", "")))


def _media(name: str, kind: str, folder: Path, notes: list[str]) -> tuple[bytes, Image.Image] | None:
    """A file, and its (first) picture; only files of the run's own folder are opened."""
    try:
        if not re.fullmatch(rf"{MEDIA}/[0-9a-f]+\.{kind}", name):
            raise ValueError(name)
        file = (folder / name).read_bytes()
        with Image.open(io.BytesIO(file)) as image:
            return file, image.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        note = f"samples/{name} is missing or incomplete"
        if note not in notes:
            notes.append(note)
        return None
