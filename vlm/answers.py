"""Answers of a batch: written prompt by prompt, and scored as the steps of a chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmrl.rollout import Chunk, Draw, StepOutput
from mmrl.vlm.distribution import TokenDistributions
from mmrl.vlm.payload import Asked, Payload, Seen, batches
from mmrl.vlm.runner import Runner


@dataclass
class Written:
    """N answers: their tokens `(len,)` int64 with the end, float32 log-probs `(len,)` on the CPU, and `finished (N,)` bool."""

    tokens: list[Tensor]
    log_probs: list[Tensor]
    finished: Tensor


def write(
    runner: Runner, model: Any, draws: Sequence[Draw], asked: Sequence[Asked], plan: Any, eos_ids: Sequence[int], pad_id: int
) -> Written:  # fmt: skip
    """Answer every prompt of `asked`, at most `plan.micro_batch` samples at a time; sample i draws from `draws[i].seed`."""
    assert [row for one in asked for row in one.rows] == list(range(len(draws)))
    tokens: list[Tensor] = []
    log_probs: list[Tensor] = []
    finished: list[Tensor] = []
    for some in batches([len(one.rows) for one in asked], plan.micro_batch):
        now = [asked[i] for i in some]
        visions = [one.vision for one in now]
        part = runner.generate(
            model,
            [one.prompt for one in now],
            [len(one.rows) for one in now],
            [draws[row].seed for one in now for row in one.rows],
            max_new_tokens=plan.max_new_tokens,
            temperature=plan.temperature,
            eos_ids=eos_ids,
            pad_id=pad_id,
            visions=None if None in visions else visions,
        )
        tokens += [row[own] for row, own in zip(part.tokens, part.mask, strict=True)]
        log_probs += [row[own].float().cpu() for row, own in zip(part.log_prob, part.mask, strict=True)]
        finished.append(part.finished.cpu())
    return Written(tokens, log_probs, torch.cat(finished))


def score(runner: Runner, model: Any, payload: Payload, seen: Seen, chunk: Chunk) -> StepOutput:
    """Log-probs and entropies `(n, s)` float32 of the chunk's steps, the prompts as in `seen`; 0 after an answer's end."""
    width = chunk.steps.shape[1]
    rows_of: dict[int, list[int]] = {}
    for place, row in enumerate(chunk.rows.tolist()):
        rows_of.setdefault(int(payload.prompt_of[row]), []).append(place)
    answers = [payload.answers[row][:width] for row in chunk.rows.tolist()]
    scored = runner.score(
        model,
        [(seen.encoded[number], [answers[place] for place in places]) for number, places in rows_of.items()],
        temperature=payload.temperature,
        visions=None if seen.visions is None else [seen.visions[number] for number in rows_of],
        entropy=True,
    )
    assert scored.entropy is not None
    places = [place for group in rows_of.values() for place in group]
    back = sorted(range(len(places)), key=places.__getitem__)
    return StepOutput(
        log_prob=wider(pad_sequence([scored.log_prob[i] for i in back], batch_first=True), width),
        entropy=wider(pad_sequence([scored.entropy[i] for i in back], batch_first=True), width),
        dist=TokenDistributions([scored.hidden[i] for i in back], runner.output_matrix(model), payload.temperature),
    )


def wider(values: Tensor, width: int) -> Tensor:
    """`values (n, s)` with columns of 0 up to `width`."""
    return nn.functional.pad(values, (0, width - values.shape[1]))
