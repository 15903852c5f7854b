"""Boxes and points in text, and the frames that their coordinates live in.

JSON first, fenced or bare: objects with "bbox_2d" ("point_2d"), or bare lists of four (two) numbers; else the last
[a, b, c, d] ([x, y]). A box is x1, y1, x2, y2 with x2 > x1 and y2 > y1; one that is not makes the answer unparsed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mmrl.rewards.verifiable.parse.region import Parsed, answer_text

Frame = Literal["pixel_original", "pixel_resized", "norm1", "norm1000"]
"""Pixels of the picture as it is stored, pixels of the picture as the model saw it, 0 to 1, or 0 to 1000."""

_FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL | re.IGNORECASE)
_NUM = r"\s*[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?\s*"
_FOUR = re.compile(rf"\[({_NUM}(?:,{_NUM}){{3}})\]")
_TWO = re.compile(rf"[\[(]({_NUM},{_NUM})[\])]")
_BOX_KEYS = ("bbox_2d", "bbox", "box")
_POINT_KEYS = ("point_2d", "point")
_LONGEST = 20_000
_STARTS = 500
_OPENING = re.compile(r"[\[{]")


@dataclass(frozen=True)
class Box:
    """A rectangle in some frame, x to the right and y down, with the name of what it holds ("" for none)."""

    x1: float
    y1: float
    x2: float
    y2: float
    label: str = ""

    @property
    def valid(self) -> bool:
        """Finite, and with an area."""
        return all(map(math.isfinite, (self.x1, self.y1, self.x2, self.y2))) and self.x2 > self.x1 and self.y2 > self.y1

    @property
    def centre(self) -> tuple[float, float]:
        """The middle, (x, y)."""
        return (self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2

    def scaled(self, x: float, y: float) -> Box:
        """The same box with every x and y multiplied."""
        return Box(self.x1 * x, self.y1 * y, self.x2 * x, self.y2 * y, self.label)


def parse_boxes(text: str, opened: bool = False, repair_tags: bool = False) -> Parsed[tuple[Box, ...]]:
    """Every box of the answer, in order. Rules: "json" (objects, or an empty list), "list" (bare lists of four)."""
    region = answer_text(text, opened, repair_tags)
    if region.value is None:
        return region.found(None)
    values = list(json_values(region.value))
    for rule, found in (("json", _keyed(values, _BOX_KEYS, 4)), ("list", _bare(values, 4) or _written(_FOUR, region))):
        if found:
            boxes = tuple(_box(numbers, label) for numbers, label in found)
            return region.found(boxes if all(box.valid for box in boxes) else None, rule)
    return region.found(() if values and values[-1] == [] else None, "json")


def parse_points(text: str, opened: bool = False, repair_tags: bool = False) -> Parsed[tuple[tuple[float, float], ...]]:
    """Every point (x, y) of the answer, in order. Rules: "json" (objects), "list" (bare [x, y] or (x, y))."""
    region = answer_text(text, opened, repair_tags)
    if region.value is None:
        return region.found(None)
    values = list(json_values(region.value))
    for rule, found in (("json", _keyed(values, _POINT_KEYS, 2)), ("list", _bare(values, 2) or _written(_TWO, region))):
        if found:
            return region.found(tuple((numbers[0], numbers[1]) for numbers, _ in found), rule)
    return region.found(None)


def gold_boxes(value: Any) -> tuple[Box, ...]:
    """A target as boxes: [x1, y1, x2, y2], an object with "bbox_2d", or a list of either.

    Raises ValueError for anything else, and for a box without an area.
    """
    found = _keyed([value], _BOX_KEYS, 4) or _bare([value], 4)
    boxes = tuple(_box(numbers, label) for numbers, label in found)
    if not (boxes or value == []) or not all(box.valid for box in boxes):
        raise ValueError(f"the target is {value!r}; expected boxes [x1, y1, x2, y2] with x2 > x1 and y2 > y1")
    return boxes


def frame_scale(frame: Frame, original: Sequence[float] | None, resized: Sequence[float] | None) -> tuple[float, float]:
    """What to multiply x and y in `frame` with to get 0 to 1; sizes are (width, height) in pixels.

    Raises ValueError where the frame needs a size that is not there.
    """
    if frame in ("norm1", "norm1000"):
        return (1.0, 1.0) if frame == "norm1" else (1e-3, 1e-3)
    size = original if frame == "pixel_original" else resized
    if size is None or len(size) != 2 or not all(isinstance(side, int | float) and side > 0 for side in size):
        name = "size" if frame == "pixel_original" else "resized"
        raise ValueError(f"frame {frame} needs meta['{name}'] = (width, height) in pixels, got {size!r}")
    return 1 / size[0], 1 / size[1]


def json_values(text: str) -> Iterator[Any]:
    """JSON lists and objects of the last fenced block that holds one; without one, those in the text itself.

    Only the last 20000 characters are looked at, and what is nested without end is no JSON.
    """
    text = text[-_LONGEST:]
    for block in reversed(_FENCE.findall(text)):
        values = list(_decoded(block))
        if values:
            return iter(values)
    return _decoded(text)


def _decoded(text: str) -> Iterator[Any]:
    decoder, at = json.JSONDecoder(), 0
    for _ in range(_STARTS):
        start = _OPENING.search(text, at)
        if start is None:
            return
        try:
            value, at = decoder.raw_decode(text, start.start())
        except ValueError:
            at = start.end()
        except RecursionError:
            return
        else:
            yield value


def _box(numbers: list[float], label: str) -> Box:
    x1, y1, x2, y2 = numbers
    return Box(x1, y1, x2, y2, label)


def _numbers(value: Any, count: int) -> list[float] | None:
    if not isinstance(value, list | tuple) or len(value) != count:
        return None
    if not all(isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e9 for x in value):
        return None
    return [float(x) for x in value]


def _keyed(values: Sequence[Any], keys: Sequence[str], count: int) -> list[tuple[list[float], str]]:
    """What the objects of the last value that has such objects say under one of `keys`, with their labels."""
    for value in reversed(values):
        objects = [item for item in (value if isinstance(value, list | tuple) else [value]) if isinstance(item, dict)]
        raw = [(item[key], str(item.get("label", ""))) for item in objects for key in keys if key in item]
        found = [(_numbers(point, count) or [math.nan] * count, label) for point, label in raw]
        if found:
            return found
    return []


def _bare(values: Sequence[Any], count: int) -> list[tuple[list[float], str]]:
    """All lists of `count` numbers, also inside one outer list."""
    found = []
    for value in values:
        inner = value if isinstance(value, list | tuple) and not _numbers(value, count) else [value]
        found += [(numbers, "") for item in inner if (numbers := _numbers(item, count)) is not None]
    return found


def _written(pattern: re.Pattern[str], region: Parsed[str]) -> list[tuple[list[float], str]]:
    """The last list of numbers that is no JSON ([-.5, 1, ...])."""
    matches = pattern.findall(region.value or "")
    return [([float(part) for part in matches[-1].split(",")], "")] if matches else []
