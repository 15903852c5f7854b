"""The caption grammar of moving shapes: 48 of one object and 528 of two.

    one  "a red circle moves right"
    two  "a red circle moves right and a blue square stays"

A caption means a target: a JSON-able dict, read by the verifier. `start` is there where the first frame is given: the centres
of a (and b) in it.

    {"kind": "one", "a": {"color": "red", "shape": "circle"}, "direction": "right"}
    {"kind": "two", "a": {...}, "direction": "right", "b": {...}, "start": [[5.0, 11.0], [17.0, 4.5]]}
"""

from __future__ import annotations

import itertools
import re
from typing import Any, Literal

from mmrl.data.shapes.world import COLORS, SHAPES

Target = dict[str, Any]
Kind = Literal["one", "two"]
KINDS: tuple[Kind, ...] = ("one", "two")

DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Steps in x (to the right) and y (down)."""

_THING = rf"a ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})"
_CAPTION = re.compile(rf"{_THING} moves ({'|'.join(DIRECTIONS)})(?: and {_THING} stays)?")


def parse(caption: str) -> Target:
    """The target of a caption; a ValueError for anything outside the grammar."""
    if match := _CAPTION.fullmatch(caption):
        color, shape, direction, other_color, other_shape = match.groups()
        a: dict[str, str] = {"color": color, "shape": shape}
        if other_color is None:
            return {"kind": "one", "a": a, "direction": direction}
        if (other_color, other_shape) != (color, shape):
            return {"kind": "two", "a": a, "direction": direction, "b": {"color": other_color, "shape": other_shape}}
    raise ValueError(f"not a caption of moving shapes: {caption!r}")


def write(target: Target) -> str:
    """The caption of a target; `parse` is its inverse (but for `start`)."""
    moves = f"a {target['a']['color']} {target['a']['shape']} moves {target['direction']}"
    if target["kind"] == "one":
        return moves
    return f"{moves} and a {target['b']['color']} {target['b']['shape']} stays"


def captions(kind: Kind | None = None) -> list[str]:
    """All 576 captions in a fixed order, or those of one kind."""
    things = [{"color": color, "shape": shape} for color, shape in itertools.product(COLORS, SHAPES)]
    found: list[str] = []
    if kind in (None, "one"):
        found += [write({"kind": "one", "a": a, "direction": d}) for a in things for d in DIRECTIONS]
    if kind in (None, "two"):
        found += [
            write({"kind": "two", "a": a, "direction": d, "b": b})
            for a, b in itertools.permutations(things, 2)
            for d in DIRECTIONS
        ]
    return found


def wanted(target: Target) -> list[tuple[str, str]]:
    """The (colour, shape) of what moves and, in a target of two, of what stays."""
    return [(target[side]["color"], target[side]["shape"]) for side in "ab" if side in target]
