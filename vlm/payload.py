"""What a rollout of a token policy keeps for its replay, and how it is cut into chunks of whole answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from mmrl.rollout import Chunk, Draw, Prompt
from mmrl.vlm.encoded import EncodedPrompt


@dataclass
class Seen:
    """Prompts through one view, and the features of their pictures where the vision part is frozen."""

    encoded: list[EncodedPrompt]
    visions: list[Any] | None = None


@dataclass(frozen=True)
class Asked:
    """Neighbouring samples `rows` that answer prompt `number` of `seen`."""

    rows: list[int]
    seen: Seen
    number: int

    @property
    def prompt(self) -> EncodedPrompt:
        return self.seen.encoded[self.number]

    @property
    def vision(self) -> Any | None:
        return None if self.seen.visions is None else self.seen.visions[self.number]


@dataclass
class Payload:
    """The answers of N samples to M prompts.

    `prompt_of (N,)` int64 is the prompt of a sample, `answers[i] (len,)` int64 its tokens, the end included. `seeds[j]` is
    what the views of prompt j draw from. `seen` fills up with the views that were asked for.
    """

    prompts: list[Prompt]
    seeds: list[int]
    prompt_of: Tensor
    answers: list[Tensor]
    temperature: float
    seen: dict[str, Seen] = field(default_factory=dict)


def groups_of(draws: Sequence[Draw]) -> list[list[int]]:
    """Positions of neighbouring draws of one group."""
    found: list[list[int]] = []
    for position, draw in enumerate(draws):
        if found and draws[found[-1][-1]].group == draw.group:
            found[-1].append(position)
        else:
            found.append([position])
    return found


def groups_of_prompts(prompts: Sequence[Prompt]) -> list[int]:
    """The number of each prompt's group: neighbours that are one and the same prompt share it."""
    found: list[int] = []
    for position, prompt in enumerate(prompts):
        same = position > 0 and prompts[position - 1] is prompt
        found.append(found[-1] + (not same) if found else 0)
    return found


def by_view(draws: Sequence[Draw], group: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Positions of neighbouring draws of a group that look through the same view."""
    return [(view, list(rows)) for view, rows in groupby(group, key=lambda row: draws[row].view)]


def batches(sizes: Sequence[int], most: int) -> Iterator[range]:
    """Neighbouring groups whose `sizes` add up to at most `most`, at least one group at a time."""
    start = 0
    while start < len(sizes):
        end, total = start + 1, sizes[start]
        while end < len(sizes) and total + sizes[end] <= most:
            total += sizes[end]
            end += 1
        yield range(start, end)
        start = end


def whole_answers(train: Tensor, micro_batch: int) -> Iterator[Chunk]:
    """Rows of `train (N, S)` bool that train something, in order, `micro_batch` at a time; a chunk's steps reach to the
    last one that any of its rows trains."""
    rows = train.any(1).nonzero()[:, 0].cpu()
    for part in rows.split(micro_batch) if len(rows) else ():
        last = int(train[part].any(0).nonzero().max()) + 1
        yield Chunk(part, torch.arange(last).expand(len(part), -1))
