"""Sampling with shared prompts against the plain way: the whole sequence through the model for every token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmrl.vlm.fast import attention
from mmrl.vlm.fast.generate import Generated, generate
from mmrl.vlm.fast.kernels import KERNELS
from mmrl.vlm.fast.sampling import choose, uniforms
from mmrl.vlm.fast.score import score
from mmrl.vlm.fast.vision import encode_vision
from tests.unit.fast_models import CLASSES, mixed_groups, naive_logits, prompt, tiny

EOS = (5, 6, 7)
options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.3, "eos_ids": EOS, "pad_id": 69}


def prompts(kind: str) -> list[Any]:
    return [p for p, _ in mixed_groups(kind)]


def naive(model: Any, one: Any, seed: int) -> list[int]:
    """Tokens of one row, every one from a fresh pass over everything before."""
    tokens: list[int] = []
    for t in range(options["max_new_tokens"]):
        with torch.no_grad():
            logits = naive_logits(model, one, torch.tensor([*tokens, 0]))[-1:]
        tokens.append(int(choose(logits, uniforms([seed], t + 1)[:, t], options["temperature"])[0]))
        if tokens[-1] in EOS:
            break
    return tokens


def rows(found: Generated) -> list[list[int]]:
    return [tokens[mask].tolist() for tokens, mask in zip(found.tokens, found.mask, strict=True)]


@pytest.mark.parametrize("kind", CLASSES)
def test_tokens_are_those_of_one_row_at_a_time(kind: str) -> None:
    model, copies, seeds = tiny(kind), [3, 1, 2, 1], [11, 12, 13, 21, 31, 32, 41]
    found = generate(model, prompts(kind), copies, seeds, **options)
    flat = [p for p, n in zip(prompts(kind), copies, strict=True) for _ in range(n)]
    assert rows(found) == [naive(model, p, seed) for p, seed in zip(flat, seeds, strict=True)]
    lengths = found.mask.sum(1).tolist()
    assert min(lengths) < options["max_new_tokens"] and len(set(lengths)) > 2
    for tokens, mask, finished, length in zip(found.tokens, found.mask, found.finished, lengths, strict=True):
        assert mask[:length].all() and (tokens[length:] == 69).all()
        assert bool(finished) == (int(tokens[length - 1]) in EOS)
    assert (found.log_prob[~found.mask] == 0).all()
    assert found.tokens.shape == (7, 12) and found.tokens.dtype == torch.int64 and found.log_prob.dtype == torch.float32


@pytest.mark.parametrize("kind", CLASSES)
def test_scoring_gives_the_log_probs_of_sampling(kind: str) -> None:
    """The ratio of an update right after sampling is one."""
    model, copies = tiny(kind), [4, 4, 4, 4]
    found = generate(model, prompts(kind), copies, range(16), **{**options, "max_new_tokens": 40})
    # a finished row may stay in the batch for a while, and is no longer heard
    assert (found.tokens[~found.mask] == 69).all() and (found.log_prob[~found.mask] == 0).all()
    assert int(found.mask.sum()) < found.mask.numel()
    answers = [tokens[mask] for tokens, mask in zip(found.tokens, found.mask, strict=True)]
    groups = [(p, answers[4 * i : 4 * i + 4]) for i, p in enumerate(prompts(kind))]
    scored = score(model, groups, temperature=options["temperature"]).log_prob
    for i, log_prob in enumerate(scored):
        torch.testing.assert_close(log_prob, found.log_prob[i][found.mask[i]], atol=2e-5, rtol=1e-5)


def test_a_row_does_not_depend_on_its_batch() -> None:
    model, all_prompts = tiny("qwen3_vl"), prompts("qwen3_vl")
    together = rows(generate(model, all_prompts, [2, 2, 2, 2], range(8), **options))
    for i, p in enumerate(all_prompts):
        assert rows(generate(model, [p], [2], range(2 * i, 2 * i + 2), **options)) == together[2 * i : 2 * i + 2]
    turned = rows(generate(model, all_prompts[::-1], [2, 2, 2, 2], [6, 7, 4, 5, 2, 3, 0, 1], **options))
    assert turned == [row for i in (3, 2, 1, 0) for row in together[2 * i : 2 * i + 2]]
    assert rows(generate(model, all_prompts, [0, 1, 0, 2], [2, 6, 7], **options)) == [together[i] for i in (2, 6, 7)]


def test_greedy_ignores_seeds_and_encoded_pictures_are_used() -> None:
    model, all_prompts = tiny("qwen3_vl"), prompts("qwen3_vl")
    greedy = {**options, "temperature": 0.0}
    visions = encode_vision(model, all_prompts)
    first = generate(model, all_prompts, [1] * 4, range(4), **greedy)
    again = generate(model, all_prompts, [1] * 4, range(50, 54), visions=visions, **greedy)
    assert torch.equal(first.tokens, again.tokens)
    blind = [type(v)(torch.zeros_like(v.embeds), v.deepstack) for v in visions]
    assert not torch.equal(
        first.log_prob, generate(model, all_prompts, [1] * 4, range(4), visions=blind, **greedy).log_prob
    )
    with torch.no_grad():
        assert int(first.tokens[0, 0]) == int(naive_logits(model, all_prompts[0], torch.tensor([0]))[0].argmax())


def test_long_answers_outgrow_the_first_cache() -> None:
    """More steps than one block of the own cache and of the rotary tables, most rows gone by then."""
    model = tiny("qwen2_5_vl")
    all_prompts = [prompt("qwen2_5_vl", [4, ("image", 1, 4, 4), 2]), prompt("qwen2_5_vl", [9])]
    long = {**options, "max_new_tokens": 90, "eos_ids": [5]}
    found = generate(model, all_prompts, [5, 5], range(10), **long)
    lengths = found.mask.sum(1)
    assert int(lengths.max()) > 70 and int(lengths.min()) < 30
    answers = [tokens[mask] for tokens, mask in zip(found.tokens, found.mask, strict=True)]
    scored = score(model, [(all_prompts[0], answers[:5]), (all_prompts[1], answers[5:])], temperature=1.3).log_prob
    for i, log_prob in enumerate(scored):
        torch.testing.assert_close(log_prob, found.log_prob[i][found.mask[i]], atol=2e-5, rtol=1e-5)


def test_without_an_end_all_tokens_are_drawn() -> None:
    found = generate(tiny("qwen2_vl"), [prompt("qwen2_vl", [4])], [3], range(3), **{**options, "eos_ids": []})
    assert found.mask.all() and not found.finished.any()


def test_finished_rows_leave_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("qwen3_vl")
    sizes: list[int] = []
    plain = model.model.language_model.layers[0].mlp.forward
    monkeypatch.setattr(
        model.model.language_model.layers[0].mlp, "forward", lambda x: (sizes.append(len(x)), plain(x))[1]
    )
    generate(model, prompts("qwen3_vl"), [4] * 4, range(16), **{**options, "max_new_tokens": 40})
    # one pass over the prompts, without padding, then one line per living row
    assert sizes[0] == sum(len(p) for p in prompts("qwen3_vl"))
    assert sizes[1] <= 16 and sizes[-1] <= 4 and sizes[1:] == sorted(sizes[1:], reverse=True)


def test_the_kernel_of_other_devices_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    model, all_prompts = tiny("qwen3_vl"), prompts("qwen3_vl")
    expected = generate(model, all_prompts, [2] * 4, range(8), **options)
    monkeypatch.setattr(attention, "choose", lambda q, bias: KERNELS["plain"])
    found = generate(model, all_prompts, [2] * 4, range(8), **options)
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.log_prob, expected.log_prob, atol=1e-5, rtol=1e-5)


def test_no_gradient_and_no_trace_in_the_model() -> None:
    model = tiny("qwen3_vl")
    found = generate(model, prompts("qwen3_vl"), [1] * 4, range(4), **options)
    assert not found.log_prob.requires_grad and model.model.rope_deltas is None
