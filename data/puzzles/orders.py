"""What a guessed order is worth: the rules of credit that spatial and temporal jigsaws share.

An order is a list of n numbers from 1; entry i says which piece, as it is shown, belongs at place i.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from mmrl.data.puzzles.answer import whole_numbers
from mmrl.data.puzzles.puzzle import UNPARSED, Verdict

Credit = Literal["places", "neighbours", "displacement", "five_or_more"]


def places(order: Sequence[int], guess: Sequence[int]) -> float:
    """Share of places with the right piece."""
    return sum(a == b for a, b in zip(order, guess, strict=True)) / len(order)


def displacement(order: Sequence[int], guess: Sequence[int]) -> float:
    """1 - sum_p |i(p) - j(p)| / floor(n^2 / 2) over pieces p, at place i in the order and j in the guess (VideoSSR)."""
    where, n = {piece: place for place, piece in enumerate(order)}, len(order)
    moved = sum(abs(where[piece] - place) for place, piece in enumerate(guess))
    return 1 - moved / (n * n // 2)


def five_or_more(order: Sequence[int], guess: Sequence[int]) -> float:
    """A fifth of the share of right places, and that only for more than four pieces (Visual Jigsaw)."""
    return 0.2 * places(order, guess) if len(order) > 4 else 0.0


def neighbours(order: Sequence[int], guess: Sequence[int], columns: int) -> float:
    """Share of the true side-by-side and one-above-the-other pairs of a board that the guess also puts together."""

    def pairs(pieces: Sequence[int]) -> set[tuple[int, int, str]]:
        board = np.asarray(pieces).reshape(-1, columns)
        beside = zip(board[:, :-1].ravel().tolist(), board[:, 1:].ravel().tolist(), strict=True)
        above = zip(board[:-1].ravel().tolist(), board[1:].ravel().tolist(), strict=True)
        return {(a, b, "beside") for a, b in beside} | {(a, b, "above") for a, b in above}

    true = pairs(order)
    return len(true & pairs(guess)) / len(true)


def verify_order(order: Sequence[int], answer: str, credit: Credit, columns: int) -> Verdict:
    """1 for the order itself, the rule's credit for another permutation, unparsed for anything else.

    `columns`: how many pieces a row of the board has (n for a sequence in time).
    """
    guess = whole_numbers(answer)
    if guess is None or sorted(guess) != list(range(1, len(order) + 1)):
        return UNPARSED
    if guess == list(order):
        return Verdict(1.0, True)
    if credit == "neighbours":
        return Verdict(neighbours(order, guess, columns), False)
    rule = {"places": places, "displacement": displacement, "five_or_more": five_or_more}[credit]
    return Verdict(rule(order, guess), False)


def shuffled(n: int, rng: np.random.Generator) -> list[int]:
    """A random order in which no piece is at its own place, so that the order as shown has no right place."""
    while True:
        order = rng.permutation(n) + 1
        if not (order == np.arange(1, n + 1)).any():
            return [int(piece) for piece in order]


def not_as_shown(n: int, rng: np.random.Generator) -> list[int]:
    """Any order but 1, 2, ..., n. One without any number at its place would do too, but of those three pieces have only two."""
    while True:
        order = [int(number) + 1 for number in rng.permutation(n)]
        if order != sorted(order):
            return order


def written(order: Sequence[int]) -> str:
    """An order as an answer: "2,1,3"."""
    return ",".join(map(str, order))
