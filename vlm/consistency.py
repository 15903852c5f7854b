"""How far an answer follows from the reasoning before it, as likelihoods.

Which tokens count: the *answer* is what stands in the last <answer></answer> behind the last </think>, without the blanks
around it; a token counts when it holds a character of it. The *reasoning* is what stands between the first <think> (or the
beginning) and the last </think>, or without one all before <answer>; taken out are the tokens that lie wholly inside it.
Probabilities are those of the rollout's temperature, the prompt as it is (view "original").
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmrl.objective.measure import put
from mmrl.objective.sequence import row_mean
from mmrl.policy import ModelName
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


def tokens_of(span: Span, tokens: Sequence[int], decode: Callable[[Sequence[int]], str], whole: bool) -> slice:
    """The tokens that hold a character of `span` of the decoded text, or with `whole` those that lie inside it."""
    places = range(len(tokens) + 1)

    def length(k: int) -> int:
        return len(decode(tokens[:k]))

    if whole:
        return slice(bisect_left(places, span[0], key=length), bisect_right(places, span[1], key=length) - 1)
    return slice(bisect_right(places, span[0], key=length) - 1, bisect_left(places, span[1], key=length))


def consistency(policy: Any, rollout: Rollout, micro_batch: int) -> Tensor:
    """GRPO-CARE: the mean probability of the answer's tokens, given prompt and reasoning, under the slow copy of the
    weights, `(n,)`; NaN without an answer. Source: TencentARC/GRPO-CARE (arXiv 2506.16141)."""
    where = _marked(rollout, [_answer(policy, tokens) for tokens in rollout.payload.answers])
    return _mean(_log_probs(policy, rollout, where, micro_batch, "ema").exp(), where)


def supported(policy: Any, rollout: Rollout, micro_batch: int) -> Tensor:
    """1 where the answer's tokens have a larger mean log-prob after the reasoning than with it taken out, else 0, `(n,)`;
    NaN without a reasoning or an answer."""
    answers = [_answer(policy, tokens) for tokens in rollout.payload.answers]
    cuts = [None if answer is None else _reasoning(policy, tokens, answer)
            for answer, tokens in zip(answers, rollout.payload.answers, strict=True)]  # fmt: skip
    both = [None if cut is None else answer for answer, cut in zip(answers, cuts, strict=True)]
    where = _marked(rollout, both)
    short = _without(rollout, cuts)
    moved = [None if one is None or cut is None else _shifted(one, cut) for one, cut in zip(both, cuts, strict=True)]
    there = _marked(short, moved)
    after = _mean(_log_probs(policy, rollout, where, micro_batch, "policy"), where)
    alone = _mean(_log_probs(policy, short, there, micro_batch, "policy"), there)
    return torch.where(after.isnan(), after, (after > alone).to(after))


MEASURES: dict[str, Callable[[Any, Rollout, int], Tensor]] = {"consistency": consistency, "rac": supported}
"""What `VlmPolicy.measure` can be asked for."""


def _answer(policy: Any, tokens: Tensor) -> slice | None:
    span = answer_span(policy.encoder.decode(tokens))
    return None if span is None else tokens_of(span, tokens.tolist(), _decoder(policy), whole=False)


def _reasoning(policy: Any, tokens: Tensor, answer: slice) -> slice | None:
    """The tokens of the reasoning, all before the answer; None where there are none."""
    span = reasoning_span(policy.encoder.decode(tokens))
    found = None if span is None else tokens_of(span, tokens.tolist(), _decoder(policy), whole=True)
    return found if found is not None and found.start < found.stop <= answer.start else None


def _decoder(policy: Any) -> Callable[[Sequence[int]], str]:
    return lambda tokens: policy.encoder.decode(torch.tensor(tokens, dtype=torch.int64))


def _shifted(answer: slice, cut: slice) -> slice:
    taken = cut.stop - cut.start
    return slice(answer.start - taken, answer.stop - taken)


def _without(rollout: Rollout, cuts: Sequence[slice | None]) -> Rollout:
    """The rollout with the tokens `cuts` taken out of its answers; its own log-probs are not known."""
    answers = [
        tokens if cut is None else torch.cat([tokens[: cut.start], tokens[cut.stop :]])
        for tokens, cut in zip(rollout.payload.answers, cuts, strict=True)
    ]
    mask = pad_sequence([torch.ones(len(answer), dtype=torch.bool) for answer in answers], batch_first=True)
    payload = replace(rollout.payload, answers=answers)
    return Rollout(rollout.draws, rollout.samples, rollout.group, torch.zeros(mask.shape), mask, payload)


def _marked(rollout: Rollout, spans: Sequence[slice | None]) -> Tensor:
    """`(n, S)` bool with the tokens of each row's span."""
    found = torch.zeros(rollout.mask.shape, dtype=torch.bool)
    for row, span in enumerate(spans):
        if span is not None:
            found[row, span] = True
    return found


@torch.no_grad()
def _log_probs(policy: Any, rollout: Rollout, where: Tensor, micro_batch: int, model: ModelName) -> Tensor:
    """Log-probs `(n, S)` float32 of the stored tokens under `model`, as far as `where` reaches."""
    found = torch.zeros(where.shape)
    for chunk in policy.chunks(rollout, where, micro_batch):
        put(found, chunk, policy.replay(rollout, chunk, model=model).log_prob)
    return found


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return row_mean(values, where)[:, 0].masked_fill(~where.any(1), torch.nan)
