"""The error of a prediction at a noise level as a pseudo log-prob, and sums over groups. Shapes: n rows of a chunk."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.objective.forward import Weighting

TINY = 1e-10
POWER = 0.25


def weighted(error: Tensor, level: Tensor, weight: Weighting) -> Tensor:
    """w(e, t) `(n,)` of the mean squared error e and the level t, both `(n,)`.

    uniform: e; t: t e; t2: t^2 e; huber: t (sqrt(e + 1e-10) - 1e-5); ghuber: t / p ((e + 1e-10)^p - 1e-10^p), p = 0.25.
    Source: AWM as in Flow-Factory, `trainers/awm.py`.
    """
    if weight == "uniform":
        return error
    if weight == "t":
        return level * error
    if weight == "t2":
        return level**2 * error
    if weight == "huber":
        return level * ((error + TINY).sqrt() - TINY**0.5)
    return level / POWER * ((error + TINY) ** POWER - TINY**POWER)


def group_mean(values: Tensor, group: Tensor) -> Tensor:
    """The mean of `values (n,)` over the rows of each row's own group `(n,)`."""
    names, index, size = torch.unique(group, return_inverse=True, return_counts=True)
    total = torch.zeros(len(names), dtype=values.dtype, device=values.device).index_add(0, index, values)
    return (total / size)[index]
