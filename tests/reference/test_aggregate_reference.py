"""Aggregations against the loops."""

from __future__ import annotations

from typing import get_args

import naive_core
import pytest
import torch

from mmrl.objective.aggregate import Mode, count, weights


def ragged(seed: int, rows: int = 7, steps: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, steps, generator=generator) < 0.5
    mask[seed % rows] = False
    return torch.randn(rows, steps, generator=generator, dtype=torch.float64), mask


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_loop(mode: Mode, seed: int) -> None:
    loss, mask = ragged(seed)
    w = weights(mask, mode, count(mask), max_steps=11)
    assert w.dtype == torch.float32 and w.shape == mask.shape and not w[~mask].any()
    expected = naive_core.aggregate(loss.tolist(), mask.tolist(), mode, 11)
    assert float((loss * w).sum()) == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("mode", get_args(Mode))
def test_nothing_to_train_gives_zero_weights(mode: Mode) -> None:
    mask = torch.zeros(3, 4, dtype=torch.bool)
    assert not weights(mask, mode, count(mask), 4).any()
