"""What repeated samples of a prompt say about it: pass@k, pass^k and best@k. Pure functions, exact, without replacement.

Of n samples of one prompt k are drawn; all three are expectations over the draws. k > n has no unbiased answer and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pass_at_k(n: int, c: int, k: int) -> float:
    """P(at least one of k is right), c of n being right: `1 - C(n - c, k) / C(n, k)`.

    Raises ValueError unless 1 <= k <= n and 0 <= c <= n. Source: Codex (arXiv 2107.03374).
    """
    _check(n, k)
    _check_right(n, c)
    return 1.0 - _none(n, c, k)


def pass_all_k(n: int, c: int, k: int) -> float:
    """pass^k, P(all of k are right): `C(c, k) / C(n, k)`. Raises ValueError as `pass_at_k`. Source: tau-bench (arXiv 2406.12045)."""
    _check(n, k)
    _check_right(n, c)
    return _none(n, n - c, k)


def best_at_k(scores: Sequence[float], k: int) -> float:
    """The expected maximum of k of the `scores` (n): `sum over i of s_(i) C(i - 1, k - 1) / C(n, k)`, s_(i) ascending.

    With scores of 0 and 1 it is `pass_at_k`. Raises ValueError unless 1 <= k <= n, and for a score that is not finite.
    """
    _check(len(scores), k)
    values = np.sort(np.asarray(scores, dtype=np.float64))
    if not np.isfinite(values).all():
        raise ValueError("a score is not finite; leave samples without a score out")
    n = len(values)
    # P(maximum is among the i smallest) = C(i, k) / C(n, k)
    below = np.array([_none(n, n - i, k) for i in range(n + 1)])
    return float((values * np.diff(below)).sum())


def _none(n: int, c: int, k: int) -> float:
    """`C(n - c, k) / C(n, k)` as a product of k factors that never leaves [0, 1]."""
    found = 1.0
    for i in range(k):
        found *= max(n - c - i, 0) / (n - i)
    return found


def _check(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k is {k} and there are {n} samples; k must be from 1 to {n}, or more samples drawn")


def _check_right(n: int, c: int) -> None:
    if not 0 <= c <= n:
        raise ValueError(f"{c} of {n} samples are right; expected 0 to {n}")
