"""Sampling without state: which token a row draws at step t follows from (seed of the row, t) and the logits alone.

So a sample does not change with the batch that it is drawn in, with the rows that finished before, or with the number of
threads or processes; and a row can be drawn again alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15: the odd number nearest to 2^64 / golden ratio, as a signed integer
MULTIPLIERS = (-4658895280553007687, -7723592293110705685)  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def uniforms(seeds: Sequence[int], steps: int, device: torch.device | str = "cpu") -> Tensor:
    """Numbers in (0, 1) `(N, steps)` float64, a function of `seeds[i]` and the step alone.

    Splitmix64 (Steele, Lea & Flood 2014): a counter from the mixed seed, mixed again; the upper 52 bits are kept.
    """
    signed = [(seed + 2**63) % 2**64 - 2**63 for seed in seeds]
    start = _mix(torch.tensor(signed, dtype=torch.int64, device=device).reshape(-1, 1))
    bits = _mix(start + GOLDEN * torch.arange(1, steps + 1, device=device))
    return (_shifted(bits, 12).to(torch.float64) + 0.5) * 2.0**-52


def choose(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """One token per row of `logits (n, V)` and its log-prob, `(n,)` int64 and `(n,)` float32.

    The token is the inverse of the cumulative distribution softmax(logits / temperature), summed in float64, at
    `uniform (n,)`: one random number per token, not one per vocabulary entry. At temperature 0 it is the most likely token,
    and the log-prob that of temperature 1.
    """
    logits = logits.float()
    if temperature > 0 and temperature != 1:
        logits = logits / temperature
    p = logits.softmax(-1)
    if temperature == 0:
        token = p.argmax(-1)
    else:
        total = p.cumsum(-1, dtype=torch.float64)
        # the first entry beyond the target: never one of probability zero
        token = torch.searchsorted(total, uniform[:, None] * total[:, -1:], right=True).squeeze(-1)
    return token, p.gather(-1, token[:, None]).squeeze(-1).log_()


def _mix(x: Tensor) -> Tensor:
    """Splitmix64's finalizer on int64, whose products wrap as those of unsigned numbers do."""
    x = (x ^ _shifted(x, 30)) * MULTIPLIERS[0]
    x = (x ^ _shifted(x, 27)) * MULTIPLIERS[1]
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
