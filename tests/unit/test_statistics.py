"""pass@k, pass^k and best@k against every subset, and against each other."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from mmrl.statistics import best_at_k, pass_all_k, pass_at_k


@pytest.mark.parametrize("n", range(1, 8))
def test_against_every_subset(n: int) -> None:
    for c in range(n + 1):
        right = [1] * c + [0] * (n - c)
        for k in range(1, n + 1):
            subsets = list(combinations(right, k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-15)
            assert pass_all_k(n, c, k) == pytest.approx(sum(map(all, subsets)) / len(subsets), abs=1e-15)
            assert best_at_k(right, k) == pytest.approx(pass_at_k(n, c, k), abs=1e-15)


@pytest.mark.parametrize("seed", range(5))
def test_best_of_scores_with_ties_and_signs_against_every_subset(seed: int) -> None:
    scores = np.random.default_rng(seed).choice([-2.5, -1.0, 0.0, 0.25, 3.0], size=7).tolist()
    for k in range(1, 8):
        subsets = list(combinations(scores, k))
        assert best_at_k(scores, k) == pytest.approx(sum(map(max, subsets)) / len(subsets))
    assert best_at_k(scores, 1) == pytest.approx(np.mean(scores)) and best_at_k(scores, 7) == max(scores)


def test_more_draws_help_any_and_hurt_all() -> None:
    any_right = [pass_at_k(20, 3, k) for k in range(1, 21)]
    all_right = [pass_all_k(20, 15, k) for k in range(1, 21)]
    assert any_right == sorted(any_right) and all_right == sorted(all_right, reverse=True)
    assert any_right[17:] == [1.0] * 3 and all_right[15:] == [0.0] * 5


def test_large_numbers_stay_exact() -> None:
    exact = 1 - math.comb(99000, 500) / math.comb(100000, 500)
    assert pass_at_k(100000, 1000, 500) == pytest.approx(exact, rel=1e-12)
    assert 0 <= pass_at_k(10**6, 1, 10**5) <= 1


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 1, 0), (0, 0, 1), (4, 5, 1), (4, -1, 1)])
def test_what_has_no_answer_is_refused(n: int, c: int, k: int) -> None:
    for function in (pass_at_k, pass_all_k):
        with pytest.raises(ValueError, match="samples"):
            function(n, c, k)
    with pytest.raises(ValueError, match="k must be"):
        best_at_k([0.0, 1.0], 3)
    with pytest.raises(ValueError, match="finite"):
        best_at_k([0.0, float("nan")], 1)
