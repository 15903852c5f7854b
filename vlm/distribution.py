"""The distribution behind every token of a replay, kept as what is small: hidden states and the output matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 256
"""Tokens whose whole vocabulary is looked at together."""


@dataclass(frozen=True)
class TokenDistributions:
    """For every row the `states`: hidden `(len, h)` that `weight (V, h)` turns into logits, or the logits `(len, V)`
    themselves where `weight` is None. Softmax is taken at `temperature`."""

    states: list[Tensor]
    weight: Tensor | None
    temperature: float

    def log_probs(self, states: Tensor) -> Tensor:
        """Log-probs `(n, V)` float32 of the whole vocabulary."""
        logits = states if self.weight is None else states @ self.weight.to(states.dtype).T
        return torch.log_softmax(logits.float() / self.temperature, dim=-1)


def kl_divergence(p: TokenDistributions, q: TokenDistributions, chunk: int = CHUNK) -> list[Tensor]:
    """KL(p || q) over the vocabulary, in nats, `(len,)` float32 per row, with gradient through both.

    At most `chunk` tokens hold a row of the vocabulary at a time; the backward pass computes them again.
    """

    def part(p_states: Tensor, q_states: Tensor) -> Tensor:
        log_p, log_q = p.log_probs(p_states), q.log_probs(q_states)
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    lengths = [len(states) for states in p.states]
    assert lengths == [len(states) for states in q.states]
    if not sum(lengths):
        return [torch.zeros(0, device=states.device) for states in p.states]
    p_parts, q_parts = torch.cat(p.states).split(chunk), torch.cat(q.states).split(chunk)
    if torch.is_grad_enabled():
        found = [checkpoint(part, a, b, use_reentrant=False) for a, b in zip(p_parts, q_parts, strict=True)]
    else:
        found = [part(a, b) for a, b in zip(p_parts, q_parts, strict=True)]
    return list(torch.cat(found).split(lengths))
