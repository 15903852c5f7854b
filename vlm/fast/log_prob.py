"""Log-probs of chosen tokens straight from hidden states: the logits of a chunk of tokens live only while it is computed.

Names of shapes: n tokens, h hidden size, V vocabulary. Reductions are float32 (float64 for float64 input).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmrl.vlm.fast.kernels import wide


def linear_log_prob(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0, chunk: int = 512
) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy of softmax(hidden W' / temperature), without the (n, V) logits.

    `hidden (n, h)`, `weight (V, h)`, `targets (n,)` int64. Returns `log_prob (n,)` of the targets and `entropy (n,)` in nats,
    both with gradient to `hidden` and `weight`. At most `chunk x V` logits exist at a time, in the forward pass and again in
    the backward pass, which computes them anew:
    d log_prob / d logits = (onehot - p) / temperature; d entropy / d logits = -p (log p + entropy) / temperature.
    """
    assert hidden.ndim == 2 and targets.shape == hidden.shape[:1] and temperature > 0
    hidden, weight = _autocast(hidden), _autocast(weight)
    log_prob, entropy = _LinearLogProb.apply(hidden, weight, targets, temperature, chunk)
    return log_prob, entropy


def linear_kl(
    hidden_p: Tensor, weight_p: Tensor, hidden_q: Tensor, weight_q: Tensor, temperature: float = 1.0, chunk: int = 512
) -> Tensor:
    """KL(p || q) = sum_v p (log p - log q) per token over the whole vocabulary, `(n,)`, without the (n, V) logits.

    p = softmax(hidden_p W_p' / temperature), q likewise; gradient to all four tensors:
    d KL / d logits_p = p (log p - log q - KL) / temperature; d KL / d logits_q = (q - p) / temperature.
    """
    assert hidden_p.shape[0] == hidden_q.shape[0] and weight_p.shape[0] == weight_q.shape[0] and temperature > 0
    tensors = [_autocast(x) for x in (hidden_p, weight_p, hidden_q, weight_q)]
    return _LinearKL.apply(*tensors, temperature, chunk)


def log_softmax(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """log softmax(hidden W' / temperature) (n, V), at least in float32."""
    logits = wide(hidden @ weight.t())
    if temperature != 1.0:
        logits = logits.div_(temperature)
    return logits.sub_(logits.logsumexp(-1, keepdim=True))


def _autocast(x: Tensor) -> Tensor:
    """What a Linear layer would compute with: its own dtype, or that of an autocast region."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class _LinearLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk: int) -> Any:
        log_prob = wide(hidden.new_empty(0)).new_empty(len(targets))
        entropy = torch.empty_like(log_prob)
        for i in range(0, len(targets), chunk):
            rows = slice(i, i + chunk)
            lp = log_softmax(hidden[rows], weight, temperature)
            log_prob[rows] = lp.gather(-1, targets[rows, None]).squeeze(-1)
            entropy[rows] = -torch.einsum("nv,nv->n", lp.exp(), lp)
        ctx.save_for_backward(hidden, weight, targets, entropy)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.set_materialize_grads(False)
        return log_prob, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        d_log_prob, d_entropy = grads
        hidden, weight, targets, entropy = ctx.saved_tensors
        to = _Accumulator(hidden, weight, ctx.needs_input_grad[:2])
        d_log_prob = torch.zeros_like(entropy) if d_log_prob is None else d_log_prob
        for i in range(0, len(targets), ctx.chunk):
            rows = slice(i, i + ctx.chunk)
            lp = log_softmax(hidden[rows], weight, ctx.temperature)
            # -p (d_log_prob + d_entropy (log p + entropy)), and d_log_prob at the targets
            if d_entropy is None:
                d = lp.exp_().mul_(-d_log_prob[rows, None])
            else:
                p = lp.exp()
                d = lp.add_(entropy[rows, None]).mul_(d_entropy[rows, None]).add_(d_log_prob[rows, None])
                d = d.mul_(p).neg_()
                del p
            d.scatter_add_(-1, targets[rows, None], d_log_prob[rows, None].to(d.dtype))
            to.add(rows, d.div_(ctx.temperature))
        return to.hidden, to.weight, None, None, None


class _LinearKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_p: Tensor, weight_p: Tensor, hidden_q: Tensor, weight_q: Tensor, temperature: float, chunk: int
    ) -> Any:
        kl = wide(hidden_p.new_empty(0)).new_empty(len(hidden_p))
        for i in range(0, len(hidden_p), chunk):
            rows = slice(i, i + chunk)
            lp = log_softmax(hidden_p[rows], weight_p, temperature)
            lq = log_softmax(hidden_q[rows], weight_q, temperature)
            kl[rows] = torch.einsum("nv,nv->n", lp.exp(), lp - lq)
        ctx.save_for_backward(hidden_p, weight_p, hidden_q, weight_q, kl)
        ctx.temperature, ctx.chunk = temperature, chunk
        return kl

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        hidden_p, weight_p, hidden_q, weight_q, kl = ctx.saved_tensors
        to_p = _Accumulator(hidden_p, weight_p, ctx.needs_input_grad[:2])
        to_q = _Accumulator(hidden_q, weight_q, ctx.needs_input_grad[2:4])
        for i in range(0, len(hidden_p), ctx.chunk):
            rows = slice(i, i + ctx.chunk)
            grad = grads[0][rows, None] / ctx.temperature
            lp = log_softmax(hidden_p[rows], weight_p, ctx.temperature)
            lq = log_softmax(hidden_q[rows], weight_q, ctx.temperature)
            p = lp.exp()
            if any(ctx.needs_input_grad[:2]):
                to_p.add(rows, (lp - lq).sub_(kl[rows, None]).mul_(p).mul_(grad))
            if any(ctx.needs_input_grad[2:4]):
                to_q.add(rows, lq.exp_().sub_(p).mul_(grad))
        return to_p.hidden, to_p.weight, to_q.hidden, to_q.weight, None, None


class _Accumulator:
    """Gradients of `hidden (n, h)` and `weight (V, h)` from those of the logits, chunk by chunk; nothing is allocated for one
    that does not need a gradient. The weight's is summed in its own dtype, at least float32."""

    def __init__(self, hidden: Tensor, weight: Tensor, needs: tuple[bool, bool]) -> None:
        self._of_hidden, self._of_weight = hidden, weight
        self.hidden = torch.empty_like(hidden) if needs[0] else None
        self._sum = wide(weight.new_empty(0)).new_zeros(weight.shape) if needs[1] else None

    def add(self, rows: slice, logits: Tensor) -> None:
        logits = logits.to(self._of_weight.dtype)
        if self.hidden is not None:
            torch.mm(logits, self._of_weight, out=self.hidden[rows])
        if self._sum is not None and self._sum.dtype == logits.dtype:
            self._sum.addmm_(logits.t(), self._of_hidden[rows])
        elif self._sum is not None:
            self._sum += logits.t() @ self._of_hidden[rows]

    @property
    def weight(self) -> Tensor | None:
        return None if self._sum is None else self._sum.to(self._of_weight.dtype)
