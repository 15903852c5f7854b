"""Log-probs of given answers, with gradient: one prompt, its pictures and all of its answers in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmrl.vlm.encoded import EncodedPrompt
from mmrl.vlm.fast.decoder import embed, positions, run
from mmrl.vlm.fast.log_prob import linear_log_prob
from mmrl.vlm.fast.packing import Layout
from mmrl.vlm.fast.parts import parts
from mmrl.vlm.fast.vision import Vision, encode_vision

Group = tuple[EncodedPrompt, Sequence[Tensor]]
"""A prompt and its answers, each `(len,)` int64."""


@dataclass(frozen=True)
class Scored:
    """Per answer, in the order given: `log_prob (len,)` and `entropy (len,)` float32 of every token (None when not asked
    for), and `hidden (len, h)`, the last hidden state from which each token was predicted."""

    log_prob: list[Tensor]
    entropy: list[Tensor] | None
    hidden: list[Tensor]


def score(
    model: Any,
    groups: Sequence[Group],
    *,
    temperature: float = 1.0,
    visions: Sequence[Vision] | None = None,
    entropy: bool = False,
    chunk: int = 512,
) -> Scored:
    """Log-probs of every answer's tokens under softmax(logits / temperature), given its prompt.

    All groups are one packed row without padding, in which every answer sees its prompt and itself; positions restart behind
    the prompt for each answer. `visions` are those of the prompts when they were encoded before. An answer may be empty.
    Logits exist for answer tokens alone, `chunk` at a time.
    """
    if not groups:
        return Scored([], [] if entropy else None, [])
    part = parts(model)
    prompts = [prompt for prompt, _ in groups]
    answers = [[answer.to(part.device) for answer in group] for _, group in groups]
    lengths = [len(answer) for group in answers for answer in group]
    visions = encode_vision(model, prompts) if visions is None else visions
    # the last token of an answer predicts nothing
    layout = Layout([len(p) for p in prompts], [[max(len(a) - 1, 0) for a in group] for group in answers], part.device)
    ids = torch.cat([*(p.input_ids.to(part.device) for p in prompts), *(a[:-1] for group in answers for a in group)])
    x, vision_at = embed(part, ids, prompts, visions)
    hidden = run(part, x, _positions(part, prompts, answers), layout, visions, vision_at)
    hidden = hidden.index_select(0, _predictors(answers, part.device))
    targets = torch.cat([a for group in answers for a in group]) if lengths else ids[:0]
    log_prob, spread = linear_log_prob(hidden, part.weight, targets, temperature, chunk)
    return Scored(
        log_prob=list(log_prob.split(lengths)),
        entropy=list(spread.split(lengths)) if entropy else None,
        hidden=list(hidden.split(lengths)),
    )


def _positions(part: Any, prompts: Sequence[EncodedPrompt], answers: Sequence[Sequence[Tensor]]) -> Tensor:
    """Positions (3, T) of the packed row."""
    found = [positions(part, prompt) for prompt in prompts]
    longest = max((len(a) for group in answers for a in group), default=0)
    steps = torch.arange(longest)
    after = [
        steps[: max(len(a) - 1, 0)] + start for (_, start), group in zip(found, answers, strict=True) for a in group
    ]
    text = torch.cat(after).expand(3, -1) if after else steps.expand(3, -1)[:, :0]
    return torch.cat([*(where for where, _ in found), text], 1).to(part.device)


def _predictors(answers: Sequence[Sequence[Tensor]], device: Any) -> Tensor:
    """For every answer token, the line of `run`'s output that predicts it: the prompt's end, then the token before."""
    lines: list[Tensor] = []
    position = len(answers)
    for number, group in enumerate(answers):
        for answer in group:
            if len(answer):
                lines += [torch.tensor([number]), torch.arange(position, position + len(answer) - 1)]
                position += len(answer) - 1
    return (torch.cat(lines) if lines else torch.zeros(0, dtype=torch.int64)).to(device)
