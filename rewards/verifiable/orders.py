"""Answers that are an order of pieces: jigsaws in space and in time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

from pydantic import Field

from mmrl.rewards.verifiable.base import Case, VerifiableReward
from mmrl.rewards.verifiable.parse.permutation import parse_order
from mmrl.rewards.verifiable.parse.region import Parsed

Mode = Literal["exact", "displacement", "places", "five_or_more", "neighbours"]


def order_credit(found: Sequence[int], gold: Sequence[int], mode: Mode, columns: int | None = None) -> float:
    """What a permutation of the n >= 2 different pieces of `gold` is worth, in [0, 1]; 1 for `gold` itself.

    exact         nothing else
    displacement  1 - sum over pieces of |place found - place wanted| / floor(n^2 / 2) (VideoSSR)
    places        share of right places
    five_or_more  a fifth of that share, and only for more than four pieces (Visual Jigsaw)
    neighbours    share of the wanted pairs of neighbours that are neighbours in the same sense: in a row, and with
                  `columns` pieces to a row also one above the other

    Raises ValueError if n is no multiple of `columns`.
    """
    n = len(gold)
    if tuple(found) == tuple(gold):
        return 1.0
    if mode == "exact" or (mode == "five_or_more" and n <= 4):
        return 0.0
    if mode == "displacement":
        where = {piece: place for place, piece in enumerate(gold)}
        return 1 - sum(abs(where[piece] - place) for place, piece in enumerate(found)) / (n * n // 2)
    if mode == "neighbours":
        wanted = _neighbours(gold, columns or n)
        return len(wanted & _neighbours(found, columns or n)) / len(wanted)
    share = sum(a == b for a, b in zip(found, gold, strict=True)) / n
    return share if mode == "places" else 0.2 * share


def _neighbours(order: Sequence[int], columns: int) -> set[tuple[int, int, str]]:
    if len(order) % columns:
        raise ValueError(f"{len(order)} pieces do not fill rows of {columns}")
    rows = [order[start : start + columns] for start in range(0, len(order), columns)]
    beside = {(a, b, "beside") for row in rows for a, b in pairwise(row)}
    return beside | {(a, b, "above") for upper, lower in pairwise(rows) for a, b in zip(upper, lower, strict=True)}


class Permutation(VerifiableReward):
    """How right an order is; what is no permutation of the target's pieces earns 0.

    A random permutation of n pieces earns in the mean 1/n! (exact), about 1/3 (displacement), 1/n (places) or 1/(5 n)
    (five_or_more); partial credit is worth what it is above that.
    """

    mode: Mode = "exact"
    """What an order that is not right is worth: `exact`: nothing; `displacement`: how near its pieces are to their places; `places`: the
    share of right places; `five_or_more`: a fifth of that, for more than four pieces; `neighbours`: the share of right neighbours."""
    columns: int | None = Field(default=None, ge=1)
    """Pieces in a row of a board, for neighbours; without it the order is one row."""

    def grade(self, case: Case) -> tuple[Parsed[Any], float]:
        """Raises ValueError for a target that is no order of at least two different numbers."""
        gold = _gold(case.target)
        parsed = parse_order(case.text, **self.reading)
        if parsed.value is None or sorted(parsed.value) != sorted(gold):
            return parsed, 0.0
        return parsed, order_credit(parsed.value, gold, self.mode, self.columns)


def _gold(target: Any) -> list[int]:
    found = parse_order(target).value if isinstance(target, str) else target
    if not isinstance(found, list | tuple) or not all(isinstance(piece, int) and piece >= 0 for piece in found):
        raise ValueError(f"the target is {target!r}; expected an order of whole numbers")
    if len(found) < 2 or len(set(found)) != len(found):
        raise ValueError(f"the target is {target!r}; expected at least two different numbers")
    return list(found)
