"""Generation and scoring with any image-text-to-text model of transformers: one prompt at a time, its answers padded.

It asks nothing of the model but a key-value cache and `logits_to_keep`. A prompt and its pictures are read once for all of
its answers; different prompts wait for each other, which the way of the Qwen-VL models avoids.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmrl.vlm.checkpointing import checkpointed
from mmrl.vlm.encoded import EncodedPrompt
from mmrl.vlm.fast.generate import Generated
from mmrl.vlm.fast.sampling import choose, uniforms
from mmrl.vlm.fast.score import Scored


@torch.no_grad()
def generate(
    model: Any, prompts: Sequence[EncodedPrompt], copies: Sequence[int], seeds: Sequence[int], *,
    max_new_tokens: int, temperature: float, eos_ids: Sequence[int], pad_id: int, visions: Any = None,
) -> Generated:  # fmt: skip
    """Answers of `copies[i]` rows for prompt i; row r draws from `seeds[r]`. Temperature 0 takes the likeliest token.

    See `mmrl.vlm.fast.generate.generate`, which gives the same.
    """
    rows, at = [], 0
    for prompt, count in zip(prompts, copies, strict=True):
        rows.append(_answers(model, prompt, seeds[at : at + count], max_new_tokens, temperature, eos_ids, pad_id))
        at += count
    assert at == len(seeds)
    longest = max(part.tokens.shape[1] for part in rows)
    return Generated(
        tokens=torch.cat([_wider(part.tokens, longest, pad_id) for part in rows]),
        log_prob=torch.cat([_wider(part.log_prob, longest, 0.0) for part in rows]),
        mask=torch.cat([_wider(part.mask, longest, False) for part in rows]),
        finished=torch.cat([part.finished for part in rows]),
    )


def score(
    model: Any, groups: Sequence[tuple[EncodedPrompt, Sequence[Tensor]]], *, temperature: float, visions: Any = None,
    entropy: bool = False,
) -> Scored:  # fmt: skip
    """Log-probs of the answers of every prompt, with gradient; `hidden` are their logits `(len, V)`."""
    log_probs: list[Tensor] = []
    entropies: list[Tensor] = []
    logits: list[Tensor] = []
    for prompt, answers in groups:
        with checkpointed(model):
            found = _answer_logits(model, prompt, answers)
        for own, answer in zip(found, answers, strict=True):
            log_p = torch.log_softmax(own.float() / temperature, dim=-1)
            log_probs.append(log_p.gather(1, answer.to(log_p.device)[:, None])[:, 0])
            logits.append(own)
            if entropy:
                entropies.append(-(log_p.exp() * log_p).sum(-1))
    return Scored(log_prob=log_probs, entropy=entropies if entropy else None, hidden=logits)


def _answers(
    model: Any, prompt: EncodedPrompt, seeds: Sequence[int], max_new_tokens: int, temperature: float,
    eos_ids: Sequence[int], pad_id: int,
) -> Generated:  # fmt: skip
    """The answers to one prompt. Rows leave the batch when they are finished."""
    device = prompt.input_ids.device
    count = len(seeds)
    tokens = torch.full((count, max_new_tokens), pad_id, device=device)
    log_prob = torch.zeros(count, max_new_tokens, device=device)
    mask = torch.zeros(count, max_new_tokens, dtype=torch.bool, device=device)
    finished = torch.zeros(count, dtype=torch.bool, device=device)
    ends = torch.tensor(sorted(eos_ids), device=device)
    first, cache = _read(model, prompt)
    logits = first[:, -1].expand(count, -1)
    cache.batch_repeat_interleave(count)
    left = torch.arange(count, device=device)
    uniform = uniforms(seeds, max_new_tokens, device)
    for step in range(max_new_tokens):
        chosen, value = choose(logits, uniform[left, step], temperature)
        tokens[left, step], log_prob[left, step], mask[left, step] = chosen, value, True
        over = torch.isin(chosen, ends)
        finished[left[over]] = True
        if over.any():
            stay = (~over).nonzero()[:, 0]
            left, chosen = left[stay], chosen[stay]
            if not len(left):
                break
            cache.batch_select_indices(stay)
        if step + 1 < max_new_tokens:
            logits = model(input_ids=chosen[:, None], past_key_values=cache, use_cache=True, logits_to_keep=1).logits[
                :, -1
            ]
    length = int(mask.any(0).sum())
    return Generated(tokens[:, :length], log_prob[:, :length], mask[:, :length], finished)


def _answer_logits(model: Any, prompt: EncodedPrompt, answers: Sequence[Tensor]) -> list[Tensor]:
    """Logits `(len, V)` that predict every token of every answer: the prompt fills the cache, with gradient, and all of its
    answers follow in one padded batch."""
    # Answers come without pixels, so that a placeholder of an image that was drawn as a token is read as a plain token.
    lengths = [len(answer) for answer in answers]
    longest = max(lengths, default=0)
    first, cache = _read(model, prompt)
    logits = first.expand(len(answers), 1, -1)
    if longest > 1:
        cache.batch_repeat_interleave(len(answers))
        device = prompt.input_ids.device
        tokens = torch.stack([_wider(answer.to(device)[None, :-1], longest - 1, 0)[0] for answer in answers])
        rest = model(input_ids=tokens, past_key_values=cache, use_cache=True).logits
        logits = torch.cat([logits, rest], 1)
    return [row[:length] for row, length in zip(logits, lengths, strict=True)]


def _read(model: Any, prompt: EncodedPrompt) -> tuple[Tensor, Any]:
    """Logits `(1, 1, V)` after a prompt, and the cache of keys and values that it left."""
    for module in model.modules():
        # Qwen-VL models keep the offset of the last prompt's positions, which a text prompt would inherit.
        if getattr(module, "rope_deltas", None) is not None:
            module.rope_deltas = None
    device = prompt.input_ids.device
    inputs = {
        **{name: value.to(device) for name, value in prompt.media.items()},
        "input_ids": prompt.input_ids[None],
        "attention_mask": torch.ones_like(prompt.input_ids)[None],
    }
    types = {"mm_token_type_ids": prompt.kinds, "token_type_ids": prompt.token_types}
    known = inspect.signature(model.forward).parameters
    inputs |= {name: value[None].to(device) for name, value in types.items() if value is not None and name in known}
    out = model(**inputs, use_cache=True, logits_to_keep=1)
    return out.logits, out.past_key_values


def _wider(values: Tensor, width: int, fill: float | bool) -> Tensor:
    """`values (n, s)` with columns of `fill` up to `width`."""
    return nn.functional.pad(values, (0, width - values.shape[1]), value=fill)
