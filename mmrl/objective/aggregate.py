"""How the loss of N samples x S steps becomes one number, as a weight matrix.

The optimizer step minimises `sum(L * W)` over all ranks and micro-batches. W depends only on the mask of a row and on
counts reduced once over the whole optimizer step, so neither splitting nor reordering changes a gradient. The sum must
reach the optimizer as a sum: with a backend that averages gradients over W ranks, multiply the loss by W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Mode = Literal["token_mean", "seq_mean_token_sum", "seq_mean_token_mean", "seq_mean_token_sum_norm"]


@dataclass(frozen=True)
class Counts:
    """Trained steps and samples with at least one trained step; `a + b` adds two parts of an optimizer step."""

    tokens: int
    sequences: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tokens + other.tokens, self.sequences + other.sequences)


def count(mask: Tensor) -> Counts:
    """Counts of `mask (N, S)` bool; samples without a trained step are not counted."""
    return Counts(int(mask.sum()), int(mask.any(dim=1).sum()))


def weights(mask: Tensor, mode: Mode, counts: Counts, max_steps: int | None = None) -> Tensor:
    """Weight matrix `(N, S)` float32 of `mask (N, S)` bool; 0 outside the mask, all 0 when nothing is trained.

    With m the mask, n_i its row sums, and N_tok, N_seq from `counts` (the whole optimizer step, all ranks):

    - token_mean: m / N_tok (DAPO)
    - seq_mean_token_sum: m / N_seq
    - seq_mean_token_mean: m / (n_i N_seq) (GRPO)
    - seq_mean_token_sum_norm: m / (max_steps N_seq) (Dr.GRPO; `max_steps` is a constant, never the padded S)

    Raises ValueError on an unknown mode or a missing `max_steps`.
    """
    m = mask.to(torch.float64)
    if mode == "token_mean":
        w = m / max(counts.tokens, 1)
    elif mode == "seq_mean_token_sum":
        w = m / max(counts.sequences, 1)
    elif mode == "seq_mean_token_mean":
        w = m / m.sum(dim=1, keepdim=True).clamp(min=1) / max(counts.sequences, 1)
    elif mode == "seq_mean_token_sum_norm":
        if max_steps is None:
            raise ValueError("seq_mean_token_sum_norm needs max_steps, the constant it divides by")
        w = m / max_steps / max(counts.sequences, 1)
    else:
        raise ValueError(f"unknown aggregation '{mode}'; one of {', '.join(get_args(Mode))}")
    return w.to(torch.float32)
