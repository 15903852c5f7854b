"""A maze with one way through it: find it. The moves of an answer are simulated."""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from mmrl.data.puzzles.answer import plain
from mmrl.data.puzzles.puzzle import UNPARSED, Pictures, Puzzle, PuzzleMaker, Verdict

MOVES: dict[str, tuple[int, int]] = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}
"""Move -> (row, column)."""
BIT = {move: 1 << number for number, move in enumerate(MOVES)}
BACK = {"U": "D", "D": "U", "L": "R", "R": "L"}
_WORDS = {"up": "U", "down": "D", "left": "L", "right": "R"}
PROGRESS = 0.5
"""Credit for standing next to the goal without having reached it is below this."""
BUMP = 0.8
"""What is left of the credit when the way ends at a wall."""
WALL, FLOOR, START, GOAL = (40, 40, 52), (238, 238, 232), (45, 185, 70), (225, 45, 45)


@dataclass(frozen=True)
class Level:
    """A board of `cells` x `cells`; the way has `length` moves and `turns` turns, both from the first to the last number."""

    cells: int
    length: tuple[int, int]
    turns: tuple[int, int]


LEVELS: dict[int, Level] = {
    1: Level(3, (2, 4), (0, 2)),
    2: Level(4, (4, 7), (2, 5)),
    3: Level(6, (8, 14), (4, 10)),
    4: Level(8, (15, 24), (8, 18)),
}


class Maze(PuzzleMaker):
    """A maze of 3 x 3 to 8 x 8 cells: find the way from the green cell to the red one.

    1 for moves that end on the goal and hit no wall. Else the moves are followed up to the first wall: standing d moves from
    the goal, which was D away at the start, earns max(0, 1 - d / D) / 2, and a fifth less if a wall ended it.
    """

    kind = "maze"
    levels: ClassVar[Mapping[int, str]] = {
        number: f"{level.cells} x {level.cells} cells, {level.length[0]} to {level.length[1]} moves, "
        f"{level.turns[0]} to {level.turns[1]} turns"
        for number, level in LEVELS.items()
    }
    chance: ClassVar[Mapping[int, float]] = {1: 0.055, 2: 0.021, 3: 0.0102, 4: 0.0058}

    size: int = Field(default=224, ge=40, le=2048)
    """Side of the picture in pixels."""

    @model_validator(mode="after")
    def _walls_show(self) -> Maze:
        if self.size < 5 * max(level.cells for level in LEVELS.values()):
            raise ValueError(f"size {self.size} is too small for a maze; use 40 or more")
        return self

    def make(self, rng: np.random.Generator, level: int, pictures: Pictures) -> Puzzle:
        """One picture, uint8 (size, size, 3). Raises UserError for a level that does not exist."""
        self.check_level(level)
        rules = LEVELS[level]
        doors, start, way = _build(rng, rules)
        goal = walk(doors, rules.cells, start, way)[0]
        question = (
            "Find the way through the maze from the green cell to the red cell. "
            "Give the moves as letters: U (up), D (down), L (left), R (right)."
        )
        target = {"cells": rules.cells, "doors": doors, "start": start, "goal": goal, "length": len(way)}
        meta = {"moves": len(way), "turns": turns(way), "rationale": f"The way is {_in_words(way)}."}
        return Puzzle(question, (_render(self.size, rules.cells, doors, start, goal),), target, "".join(way), meta)

    @classmethod
    def verify(cls, target: Mapping[str, Any], answer: str) -> Verdict:
        """Letters or words for moves; anything else is unparsed."""
        moves = _read(answer)
        if moves is None:
            return UNPARSED
        end, legal = walk(target["doors"], target["cells"], target["start"], moves)
        if end == target["goal"] and legal:
            return Verdict(1.0, True)
        away = distances(target["doors"], target["cells"], target["goal"])
        share = max(0.0, 1 - away[end] / away[target["start"]])
        return Verdict(PROGRESS * share * (1.0 if legal else BUMP), False)

    @classmethod
    def random_answer(cls, rng: np.random.Generator, target: Mapping[str, Any]) -> str:
        """As many random moves as the way has."""
        return "".join(rng.choice(list(MOVES), size=target["length"]))


def _read(answer: str) -> list[str] | None:
    """ "RRD", "R, R, D" and "right right down" as moves; None for anything else."""
    moves: list[str] = []
    for word in re.split(r"[\s,;>-]+", plain(answer)):
        if not word or (word not in _WORDS and set(word) - set("udlr")):
            return None
        moves += [_WORDS[word]] if word in _WORDS else word.upper()
    return moves


def walk(doors: Sequence[int], cells: int, start: int, moves: Sequence[str]) -> tuple[int, bool]:
    """The cell where the moves end, or where they meet the first wall, and whether they met none.

    `doors`: per cell (row-major) the sum of `BIT` of the moves that lead out of it.
    """
    at = start
    for move in moves:
        if not doors[at] & BIT[move]:
            return at, False
        at += MOVES[move][0] * cells + MOVES[move][1]
    return at, True


def distances(doors: Sequence[int], cells: int, goal: int) -> list[int]:
    """Moves from every cell to the goal."""
    found, queue = {goal: 0}, deque([goal])
    while queue:
        at = queue.popleft()
        for move, (down, right) in MOVES.items():
            there = at + down * cells + right
            if doors[at] & BIT[move] and there not in found:
                found[there] = found[at] + 1
                queue.append(there)
    return [found[cell] for cell in range(cells * cells)]


def turns(way: Sequence[str]) -> int:
    """How often the direction changes."""
    return sum(a != b for a, b in itertools.pairwise(way))


def _build(rng: np.random.Generator, rules: Level) -> tuple[list[int], int, list[str]]:
    """Doors of a maze without loops, a start, and the one way from there to a goal, as the level wants it."""
    while True:
        doors = _carve(rng, rules.cells)
        for start in rng.permutation(rules.cells**2)[:4]:
            ways = _ways(doors, rules.cells, int(start))
            fits = [
                way
                for way in ways
                if rules.length[0] <= len(way) <= rules.length[1] and rules.turns[0] <= turns(way) <= rules.turns[1]
            ]
            lengths = sorted({len(way) for way in fits})
            if lengths:
                length = lengths[int(rng.integers(len(lengths)))]
                chosen = [way for way in fits if len(way) == length]
                return doors, int(start), chosen[int(rng.integers(len(chosen)))]


def _carve(rng: np.random.Generator, cells: int) -> list[int]:
    """A spanning tree of the board by a random depth-first walk."""
    doors, stack, seen = [0] * (cells * cells), [int(rng.integers(cells * cells))], set()
    seen.add(stack[0])
    while stack:
        row, column = divmod(stack[-1], cells)
        free = [
            (move, (row + down) * cells + column + right)
            for move, (down, right) in MOVES.items()
            if 0 <= row + down < cells
            and 0 <= column + right < cells
            and (row + down) * cells + column + right not in seen
        ]
        if not free:
            stack.pop()
            continue
        move, there = free[int(rng.integers(len(free)))]
        doors[stack[-1]] |= BIT[move]
        doors[there] |= BIT[BACK[move]]
        seen.add(there)
        stack.append(there)
    return doors


def _ways(doors: Sequence[int], cells: int, start: int) -> list[list[str]]:
    """The way from the start to every other cell."""
    ways: dict[int, list[str]] = {start: []}
    queue = deque([start])
    while queue:
        at = queue.popleft()
        for move, (down, right) in MOVES.items():
            there = at + down * cells + right
            if doors[at] & BIT[move] and there not in ways:
                ways[there] = [*ways[at], move]
                queue.append(there)
    return [way for way in ways.values() if way]


def _render(size: int, cells: int, doors: Sequence[int], start: int, goal: int) -> np.ndarray:
    picture = np.full((size, size, 3), WALL, dtype=np.uint8)
    wall = max(1, size // (cells * 9))
    edges = [wall + round(index * (size - wall) / cells) for index in range(cells + 1)]
    for cell in range(cells * cells):
        row, column = divmod(cell, cells)
        top, left, bottom, right = edges[row], edges[column], edges[row + 1] - wall, edges[column + 1] - wall
        picture[top:bottom, left:right] = FLOOR
        if doors[cell] & BIT["R"]:
            picture[top:bottom, right : right + wall] = FLOOR
        if doors[cell] & BIT["D"]:
            picture[bottom : bottom + wall, left:right] = FLOOR
        if cell in (start, goal):
            inset = max(1, (bottom - top) // 5)
            picture[top + inset : bottom - inset, left + inset : right - inset] = START if cell == start else GOAL
    return picture


def _in_words(way: Sequence[str]) -> str:
    """ "2 right, 1 down"."""
    words = {letter: word for word, letter in _WORDS.items()}
    return ", ".join(f"{len(list(run))} {words[move]}" for move, run in itertools.groupby(way))
