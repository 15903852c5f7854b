"""One prompt as an engine is asked it, and what an engine answers, checked before a token is trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mmrl.errors import UserError
from mmrl.rollout import Draw
from mmrl.seeding import derive_seed
from mmrl.vlm.media import Video
from mmrl.vlm.payload import Asked

if TYPE_CHECKING:
    from mmrl.vlm.policy import VlmPolicy

Answer: TypeAlias = tuple[Tensor, Tensor, bool]
"""Tokens `(len,)` int64, float32 log-probs `(len,)`, and whether it ended by itself."""

LOWEST = -9999.0
"""What vLLM writes where a log-prob is minus infinity."""


@dataclass(frozen=True)
class Request:
    """A prompt to be answered `count` times: `messages` whose i-th `{"type": "image"}` is `images[i]`, uint8 (H, W, 3).
    Sample k is drawn with `seed + k`. `prompt_ids (P,)` are the tokens that the trainer reads, placeholders expanded."""

    prompt: str
    messages: list[dict[str, Any]]
    images: list[np.ndarray]
    count: int
    seed: int
    prompt_ids: list[int]

    def with_pictures(self, part_of: Callable[[np.ndarray], dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages, what `part_of` makes of a picture in the place of each."""
        images = iter(self.images)
        return [
            {
                **message,
                "content": [part_of(next(images)) if part["type"] == "image" else part for part in message["content"]],
            }
            for message in self.messages
        ]


@dataclass(frozen=True)
class Choice:
    """One answer as an engine reports it: `tokens` with the end, a log-prob for each, and why it ended."""

    tokens: Sequence[Any]
    log_probs: Sequence[Any]
    reason: Any


@dataclass(frozen=True)
class Ending:
    """How an answer may end: with one of `eos`, or after `most` tokens. Token ids are below `vocabulary`."""

    eos: frozenset[int]
    most: int
    vocabulary: int


def request_of(policy: VlmPolicy, draws: Sequence[Draw], asked: Asked) -> Request:
    """Raises UserError for videos: an engine would choose and compress their frames itself."""
    first = draws[asked.rows[0]]
    members = [draws[row].member for row in asked.rows]
    assert members == list(range(first.member, first.member + len(members)))
    messages, media = policy.encoder.conversation(first.prompt, first.view, first.group_seed)
    images = [item for item in media if not isinstance(item, Video)]
    if len(images) < len(media):
        raise UserError(
            f"prompt '{first.prompt.id}' has a video: an engine would choose its frames otherwise than the trainer; use "
            "policy.engine={kind: own}"
        )
    # a member's seed follows from its group, so it does not matter how groups are spread over processes
    seed = derive_seed("engine", first.group_seed) % 2**62 + first.member
    return Request(first.prompt.id, messages, images, len(members), seed, asked.prompt.input_ids.tolist())


def ending_of(policy: VlmPolicy, plan: Any) -> Ending:
    """What answers of `policy` look like under `plan`."""
    vocabulary = policy.model.get_input_embeddings().num_embeddings
    return Ending(frozenset(policy.eos_ids), plan.max_new_tokens, vocabulary)


def checked(request: Request, prompt_ids: Any, choices: Sequence[Choice], ending: Ending) -> list[Answer]:
    """Every sample of a request. Raises UserError for anything that would train on something else than what was drawn."""

    def refuse(what: str) -> UserError:
        return UserError(f"the engine's answer to prompt '{request.prompt}' cannot be trained on: {what}")

    if prompt_ids is None:
        raise refuse("it does not say which tokens it read (prompt_token_ids); the engine is too old")
    if list(prompt_ids) != request.prompt_ids:
        raise refuse(
            f"it read {len(prompt_ids)} tokens and the trainer {len(request.prompt_ids)}, {_first_difference(prompt_ids, request)}: "
            "both need the same processor, bounds of pixels and chat template"
        )
    if len(choices) != request.count:
        raise refuse(f"{request.count} samples were asked for, and {len(choices)} came")
    found = []
    for choice in choices:
        tokens, log_probs = list(choice.tokens or ()), list(choice.log_probs or ())
        if not tokens:
            raise refuse("its tokens are missing (token_ids)")
        if any(not isinstance(token, int) or not 0 <= token < ending.vocabulary for token in tokens):
            raise refuse(f"token ids must be integers from 0 to {ending.vocabulary - 1}")
        if len(log_probs) != len(tokens):
            raise refuse(f"{len(tokens)} tokens came with {len(log_probs)} log-probs")
        bad = next((p for p in log_probs if not isinstance(p, int | float) or not LOWEST < p <= 1e-3), None)
        if bad is not None:
            raise refuse(f"a log-prob is {bad}")
        over = tokens[-1] in ending.eos
        if any(token in ending.eos for token in tokens[:-1]) or len(tokens) > ending.most:
            raise refuse("it goes on after its end")
        if not over and len(tokens) < ending.most:
            raise refuse(f"it stops after {len(tokens)} tokens without an end ({choice.reason})")
        found.append((torch.tensor(tokens), torch.tensor(log_probs, dtype=torch.float32).clamp(max=0.0), over))
    return found


def _first_difference(prompt_ids: Sequence[int], request: Request) -> str:
    pairs = enumerate(zip(prompt_ids, request.prompt_ids, strict=False))
    place = next((i for i, (a, b) in pairs if a != b), min(len(prompt_ids), len(request.prompt_ids)))
    return f"different from token {place} on"
