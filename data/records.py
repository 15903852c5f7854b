"""A row of a file or table -> a prompt."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from mmrl.data.conversation import KINDS, SLOT
from mmrl.data.images import as_array
from mmrl.errors import UserError
from mmrl.media import is_image
from mmrl.rollout import Prompt


class Columns(BaseModel):
    """Which key (or column) of a row holds what. `text` and every key that is not the default must be there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str = "text"
    id: str = "id"
    """A string or an integer, unique; without it the row's number is the id."""
    target: str = "target"
    media: str = "media"
    """One file or image, or a list of them; relative files are looked up beside the data."""
    meta: str | tuple[str, ...] = "meta"
    """A key that holds a mapping, or a list of keys to keep."""

    def check(self, present: Collection[str], where: str) -> None:
        """Raises UserError with the nearest name if a key is missing."""
        for column, field in type(self).model_fields.items():
            named = getattr(self, column)
            if named == field.default and column != "text":
                continue
            for key in (named,) if isinstance(named, str) else named:
                if key not in present:
                    near = difflib.get_close_matches(key, present, n=1)
                    hint = f"; did you mean '{near[0]}'?" if near else ""
                    raise UserError(
                        f"{where}: no '{key}'{hint} (there: {', '.join(present) or 'nothing'}; set columns.{column})"
                    )


def prompt_of(record: Mapping[str, Any], columns: Columns, where: str, default_id: str, folder: Path | None) -> Prompt:
    """The prompt of one row. `where` ("prompts.jsonl:3") starts every error; media files are relative to `folder`."""
    columns.check(list(record), where)
    text = record[columns.text]
    if not isinstance(text, str):
        raise UserError(f"{where}: '{columns.text}' is {_show(text)}; expected a string")
    if not text.strip():
        raise UserError(f"{where}: '{columns.text}' is empty; remove the row or write a prompt")
    name = record.get(columns.id)
    if name is not None and (isinstance(name, bool) or not isinstance(name, str | int)):
        raise UserError(f"{where}: '{columns.id}' is {_show(name)}; expected a string or an integer")
    media, meta = _media(record.get(columns.media), columns.media, where, folder), _meta(record, columns, where)
    _check_slots(text, media, columns, where)
    _check_fps(media, meta, where)
    return Prompt(
        id=default_id if name is None else str(name),
        text=text,
        media=media,
        target=record.get(columns.target),
        meta={**meta, "source": where},
    )


def _check_slots(text: str, media: tuple[Any, ...], columns: Columns, where: str) -> None:
    """Raises UserError where a text names more media than there are; the others may stand in the policy's template."""
    slots = SLOT.findall(text)
    kinds = ["image" if is_image(item) else "video" for item in media]
    if any(slots.count(kind) > kinds.count(kind) for kind in KINDS):
        written, there = (
            " and ".join(f"{found.count(kind)} {left}{kind}{right}" for kind in KINDS)
            for found, left, right in ((slots, "<", ">"), (kinds, "", "s"))
        )
        raise UserError(
            f"{where}: '{columns.text}' has {written}, but '{columns.media}' holds {there}; write one for each, or none"
        )


def _check_fps(media: tuple[Any, ...], meta: Mapping[str, Any], where: str) -> None:
    """Raises UserError for frames without the time between them; a video file knows it."""
    fps = meta.get("fps")
    if any(not isinstance(item, str) and item.ndim == 4 for item in media) and not (
        isinstance(fps, int | float) and not isinstance(fps, bool) and 0 < fps < float("inf")
    ):
        raise UserError(
            f"{where}: a video given as frames needs its frames per second: meta.fps is {_show(fps)}; expected a number above 0"
        )


def _meta(record: Mapping[str, Any], columns: Columns, where: str) -> dict[str, Any]:
    if not isinstance(columns.meta, str):
        return {key: record[key] for key in columns.meta}
    found = record.get(columns.meta)
    if found is not None and not isinstance(found, Mapping):
        raise UserError(f"{where}: '{columns.meta}' is {_show(found)}; expected an object")
    return dict(found or {})


def _media(value: Any, key: str, where: str, folder: Path | None) -> tuple[Any, ...]:
    found: list[Any] = []
    for item in value if isinstance(value, list | tuple) else () if value is None else (value,):
        if isinstance(item, str):
            path = ((folder or Path()) / Path(item).expanduser()).absolute()
            if not path.is_file():
                raise UserError(f"{where}: '{key}' names {path}, which is no file")
            found.append(str(path))
            continue
        try:
            found.append(as_array(item))
        except (TypeError, ValueError, OSError) as error:
            raise UserError(f"{where}: '{key}' holds no image: {error}") from None
    return tuple(found)


def _show(value: Any) -> str:
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
