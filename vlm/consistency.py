"""How far an answer follows from the reasoning before it.

The *answer* is what stands in the last <answer></answer> behind the last </think>, without the blanks around it; its tokens
are those that hold a character of it. The *reasoning* is what stands between the first <think> (or the beginning) and the
last </think>, or without one all before <answer>.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmrl.objective.measure import put
from mmrl.objective.sequence import row_mean
from mmrl.rollout import Rollout

BLOCK = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.IGNORECASE | re.DOTALL)
THINK = re.compile(r"<think>", re.IGNORECASE)
THOUGHT = re.compile(r"</think>", re.IGNORECASE)
OPEN = re.compile(r"<(?:think|answer)>", re.IGNORECASE)

Span = tuple[int, int]


def answer_span(text: str) -> Span | None:
    """Characters of the answer; None where there is none, it is blank, or the text breaks off behind it."""
    begin = max((match.end() for match in THOUGHT.finditer(text)), default=0)
    found = list(BLOCK.finditer(text, begin))[-1:]
    if not found or THINK.search(text, begin) or OPEN.search(text, found[0].end()):
        return None
    return _trimmed(text, found[0].start(1), found[0].end(1))


def reasoning_span(text: str) -> Span | None:
    """Characters of the reasoning before an answer; None where it is blank or missing."""
    ends = [match.start() for match in THOUGHT.finditer(text)]
    blocks = [match.start() for match in BLOCK.finditer(text)]
    if not ends and not blocks:
        return None
    first = THINK.search(text)
    end = ends[-1] if ends else blocks[-1]
    return _trimmed(text, first.end() if first is not None and first.end() <= end else 0, end)


def _trimmed(text: str, start: int, end: int) -> Span | None:
    own = text[start:end]
    left = len(own) - len(own.lstrip())
    return (start + left, start + len(own.rstrip())) if own.strip() else None


def tokens_of(span: Span, tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> slice:
    """The tokens that hold a character of `span` of the decoded text."""
    places = range(len(tokens) + 1)

    def length(k: int) -> int:
        return len(decode(tokens[:k]))

    return slice(bisect_right(places, span[0], key=length) - 1, bisect_left(places, span[1], key=length))


@torch.no_grad()
def consistency(policy: Any, rollout: Rollout, micro_batch: int) -> Tensor:
    """GRPO-CARE: the mean probability, at the rollout's temperature, of the answer's tokens, given prompt and reasoning, under
    the slow copy of the weights, `(n,)`; NaN without an answer. Source: TencentARC/GRPO-CARE (arXiv 2506.16141)."""
    where = answer_tokens(policy, rollout, reasoned=False)
    found = torch.zeros(where.shape)
    for chunk in policy.chunks(rollout, where, micro_batch):
        put(found, chunk, policy.replay(rollout, chunk, model="ema").log_prob.exp())
    return row_mean(found, where)[:, 0].masked_fill(~where.any(1), torch.nan)


@torch.no_grad()
def supported(policy: Any, rollout: Rollout, micro_batch: int) -> Tensor:
    """1 where the policy, asked with its pictures hidden (`blind_view`) and told its own reasoning, would give this answer:
    every token of it is the likeliest one. Else 0, `(n,)`; NaN without a reasoning or an answer."""
    where = answer_tokens(policy, rollout, reasoned=True)
    likeliest = torch.zeros(where.shape)
    for chunk in policy.chunks(rollout, where, micro_batch):
        dist = policy.replay(rollout, chunk, view=policy.blind_view).dist
        for row, states in zip(chunk.rows.tolist(), dist.states, strict=True):
            own = where[row].nonzero()[:, 0]
            log_p = dist.log_probs(states[own.to(states.device)])
            said = rollout.payload.answers[row].to(log_p.device)[own.to(log_p.device)]
            likeliest[row, own] = (log_p.gather(1, said[:, None])[:, 0] == log_p.amax(1)).float().cpu()
    return (row_mean(likeliest, where)[:, 0] == 1).float().masked_fill(~where.any(1), torch.nan)


MEASURES: dict[str, Callable[[Any, Rollout, int], Tensor]] = {"consistency": consistency, "rac": supported}
"""What `VlmPolicy.measure` can be asked for."""


def answer_tokens(policy: Any, rollout: Rollout, reasoned: bool) -> Tensor:
    """The tokens of each sample's answer, `(n, S)` bool, with `reasoned` of those alone that have a reasoning."""
    found = torch.zeros(rollout.mask.shape, dtype=torch.bool)

    def decode(tokens: Sequence[int]) -> str:
        text: str = policy.encoder.decode(torch.tensor(tokens, dtype=torch.int64))
        return text

    for row, tokens in enumerate(answer.tolist() for answer in rollout.payload.answers):
        text = decode(tokens)
        span = answer_span(text)
        if span is not None and (not reasoned or reasoning_span(text) is not None):
            found[row, tokens_of(span, tokens, decode)] = True
    return found
