"""What can be asked of a picture, and a random edit with the pictures before and after it.

    recolor  "make the circle blue"
    move     "move the square to the right"
    add      "add a red triangle above the square"
    insert   "add the object of the second picture above the square"   (two source pictures)
    remove   "remove the square"

A source picture shows two or three objects of different shapes, so a shape says which one is meant.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from mmrl.data.shapes.captions import touch
from mmrl.data.shapes.world import BOARD, COLORS, SHAPES, Item, Scene, room

Target = dict[str, Any]
Kind = Literal["recolor", "move", "add", "insert", "remove"]
KINDS: tuple[Kind, ...] = ("recolor", "move", "add", "insert", "remove")

DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Steps in x (to the right) and y (down)."""
_GOES = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}
_LIES = {"left": "left of", "right": "right of", "up": "above", "down": "below"}


@dataclass(frozen=True)
class Edit:
    """One edit: `subject` is the shape of the object that is changed, or that something is added beside."""

    kind: Kind
    subject: str
    direction: str | None = None
    """Where to (move), or on which side of the subject (add, insert)."""
    color: str | None = None
    """The new colour (recolor), or that of the new object."""
    shape: str | None = None
    """Of the new object."""

    def __post_init__(self) -> None:
        needs = {"recolor": "c", "move": "d", "add": "dcs", "insert": "dcs", "remove": ""}.get(self.kind)
        given = "".join(
            key for key, value in zip("dcs", (self.direction, self.color, self.shape), strict=True) if value
        )
        if needs != given or self.subject not in SHAPES or (self.direction or "up") not in DIRECTIONS:
            raise ValueError(f"no edit of the shapes world: {self}")
        if (self.color or "red") not in COLORS or (self.shape or "circle") not in SHAPES:
            raise ValueError(f"no edit of the shapes world: {self}")

    @property
    def instruction(self) -> str:
        """What is asked, in words."""
        direction = self.direction or ""
        if self.kind == "recolor":
            return f"make the {self.subject} {self.color}"
        if self.kind == "remove":
            return f"remove the {self.subject}"
        if self.kind == "move":
            return f"move the {self.subject} {_GOES[direction]}"
        what = "the object of the second picture" if self.kind == "insert" else f"a {self.color} {self.shape}"
        return f"add {what} {_LIES[direction]} the {self.subject}"

    @property
    def step(self) -> np.ndarray:
        """The unit step `(2,)` of the direction."""
        return np.array(DIRECTIONS[self.direction or ""])


@dataclass(frozen=True)
class Task:
    """An edit of a scene, the scene after it, and the second source picture of an insert."""

    edit: Edit
    before: Scene
    after: Scene
    second: Scene | None = None

    def target(self) -> Target:
        """What the verifier reads: the edit and the scene before it."""
        return {key: value for key, value in asdict(self.edit).items() if value is not None} | {
            "before": self.before.to_json()
        }


def read_target(target: Mapping[str, Any]) -> tuple[Edit, Scene]:
    """The edit and the scene of a target. Raises KeyError, TypeError or ValueError for a foreign one."""
    edit = Edit(**{key: value for key, value in target.items() if key != "before"})
    scene = Scene.from_json(target["before"])
    if sum(item.shape == edit.subject for item in scene.items) != 1:
        raise ValueError(f"the scene has not just one {edit.subject}")
    return edit, scene


def sample_task(kind: Kind, rng: np.random.Generator) -> Task:
    """A random scene and an edit of this kind that can be made in it; objects stay at least 1 px apart, before and after."""
    while True:
        shapes = rng.permutation(SHAPES)[: rng.integers(2, 4)]
        cells = rng.choice(BOARD * BOARD, size=len(shapes), replace=False)
        items = [
            _placed(str(rng.choice(COLORS)), str(shape), int(cell), rng)
            for shape, cell in zip(shapes, cells, strict=True)
        ]
        found = _edited(kind, items, rng)
        if found is None or not (_apart(items) and _apart(found[1])):
            continue
        edit, after = found
        second = None
        if kind == "insert":
            second = Scene((_placed(str(edit.color), str(edit.shape), int(rng.integers(BOARD * BOARD)), rng),))
        return Task(edit, Scene(tuple(items)), Scene(tuple(after)), second)


def _edited(kind: Kind, items: list[Item], rng: np.random.Generator) -> tuple[Edit, list[Item]] | None:
    """An edit of the first of the items, and the items after it; None where there is no room for it."""
    subject, rest = items[0], items[1:]
    if kind == "remove":
        return Edit(kind, subject.shape), rest
    if kind == "recolor":
        color = str(rng.choice([one for one in COLORS if one != subject.color]))
        return Edit(kind, subject.shape, color=color), [
            Item(color, subject.shape, subject.cell, subject.dx, subject.dy),
            *rest,
        ]
    direction = str(rng.choice(list(DIRECTIONS)))
    cell = _beside(subject.cell, direction)
    if cell is None or any(item.cell == cell for item in items):
        return None
    if kind == "move":
        moved = Item(subject.color, subject.shape, cell, subject.dx, subject.dy)
        return Edit(kind, subject.shape, direction), [moved, *rest]
    new = _placed(str(rng.choice(COLORS)), str(rng.choice(SHAPES)), cell, rng)
    if any((item.color, item.shape) == (new.color, new.shape) for item in items):
        return None
    return Edit(kind, subject.shape, direction, new.color, new.shape), [*items, new]


def _placed(color: str, shape: str, cell: int, rng: np.random.Generator) -> Item:
    dx, dy = rng.integers(0, room(shape) + 1, size=2)
    return Item(color, shape, cell, int(dx), int(dy))


def _beside(cell: int, direction: str) -> int | None:
    """The next cell in a direction, or None at the edge of the board."""
    column, row = cell % BOARD + DIRECTIONS[direction][0], cell // BOARD + DIRECTIONS[direction][1]
    return row * BOARD + column if 0 <= column < BOARD and 0 <= row < BOARD else None


def _apart(items: list[Item]) -> bool:
    return not any(touch(p, q) for p, q in itertools.combinations(items, 2))
