"""Scoring a group in one pass against the plain way: each (prompt, answer) alone through the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl.errors import UserError
from mmrl.vlm.checkpointing import set_checkpointing
from mmrl.vlm.fast import attention, supports, vision
from mmrl.vlm.fast.kernels import KERNELS
from mmrl.vlm.fast.score import score
from mmrl.vlm.fast.vision import encode_vision
from tests.unit.fast_models import CLASSES, IMAGE, VIDEO, answer, mixed_groups, naive_log_prob, prompt, tiny

Weigh = Callable[[Tensor, Tensor], Tensor]


def weights(seed: int = 3) -> Weigh:
    """A random linear function of log-probs and entropies, the same for every caller."""
    g = torch.Generator().manual_seed(seed)

    def weigh(log_prob: Tensor, entropy: Tensor) -> Tensor:
        a, b = torch.randn(2, len(log_prob), generator=g)
        return (a * log_prob).sum() + (b * entropy).sum()

    return weigh


def gradients(loss: Tensor, model: Any) -> dict[str, Tensor | None]:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values()), allow_unused=True), strict=True))


def compare(model: Any, groups: Any, temperature: float = 0.7, tolerance: float = 1e-5) -> None:
    """Values and gradients of both ways."""
    scored = score(model, groups, temperature=temperature, entropy=True, chunk=7)
    assert scored.entropy is not None
    weigh, loss, plain_loss = weights(), torch.zeros(()), torch.zeros(())
    flat = [(p, a) for p, answers in groups for a in answers]
    assert len(scored.log_prob) == len(scored.entropy) == len(scored.hidden) == len(flat)
    for (p, a), log_prob, entropy in zip(flat, scored.log_prob, scored.entropy, strict=True):
        plain, plain_entropy = naive_log_prob(model, p, a, temperature)
        assert log_prob.dtype == torch.float32 and log_prob.shape == a.shape
        torch.testing.assert_close(log_prob, plain, atol=tolerance, rtol=1e-5)
        torch.testing.assert_close(entropy, plain_entropy, atol=tolerance, rtol=1e-5)
        loss = loss + weigh(log_prob, entropy)
    weigh = weights()
    for p, a in flat:
        plain_loss = plain_loss + weigh(*naive_log_prob(model, p, a, temperature))
    expected, found = gradients(plain_loss, model), gradients(loss, model)
    assert any("visual" in name and g is not None for name, g in expected.items()) or not any(p.media for p, _ in flat)
    for name, gradient in expected.items():
        if gradient is None:
            assert found[name] is None or not found[name].any(), name  # type: ignore[union-attr]
        else:
            size = float(gradient.abs().max())
            torch.testing.assert_close(found[name], gradient, atol=tolerance * max(size, 1), rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", CLASSES)
def test_log_probs_and_all_gradients_are_those_of_one_answer_at_a_time(kind: str) -> None:
    compare(tiny(kind), mixed_groups(kind))


@pytest.mark.parametrize("kind", CLASSES)
def test_equal_lengths_take_the_path_without_padding(kind: str) -> None:
    groups = [(prompt(kind, [2, ("image", 1, 4, 4), 3], i), [answer(4, 2 * i + j) for j in range(2)]) for i in range(2)]
    compare(tiny(kind), groups)


@pytest.mark.parametrize("kind", CLASSES)
def test_text_alone_and_a_single_group(kind: str) -> None:
    compare(tiny(kind), [(prompt(kind, [5]), [answer(3, 0), answer(1, 1)])])


def test_a_placeholder_in_an_answer_is_a_token_like_any_other() -> None:
    model, one = tiny("qwen3_vl"), prompt("qwen3_vl", [2, ("image", 1, 4, 4), 3])
    written = torch.tensor([3, IMAGE, VIDEO, 4])
    with torch.no_grad():
        plain = naive_log_prob(model, one, written)[0]
        torch.testing.assert_close(score(model, [(one, [written])]).log_prob[0], plain, atol=1e-5, rtol=1e-5)


def test_answers_of_one_token_and_none() -> None:
    groups = [(prompt("qwen3_vl", [2, ("image", 1, 2, 2)]), [answer(1, 0), answer(0, 1), answer(1, 2)])]
    model = tiny("qwen3_vl")
    compare(model, groups)
    nothing = score(model, [(groups[0][0], [answer(0, 0)])])
    assert [len(x) for x in nothing.log_prob] == [0] and nothing.entropy is None
    assert score(model, []).log_prob == []


@pytest.mark.parametrize("kind", CLASSES)
def test_adapters(kind: str) -> None:
    """Every linear layer, the tower's too, with an adapter that is not zero."""
    from peft import LoraConfig, get_peft_model

    model: Any = get_peft_model(tiny(kind), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    assert supports(model)
    compare(model.eval(), mixed_groups(kind))
    groups = mixed_groups(kind)[:1]
    with model.disable_adapter():
        without = score(model, groups).log_prob[0]
        torch.testing.assert_close(
            without, naive_log_prob(model, groups[0][0], groups[0][1][0])[0], atol=1e-5, rtol=1e-5
        )
    assert not torch.allclose(without, score(model, groups).log_prob[0])


def test_tied_embeddings() -> None:
    """The gradients of both uses of one matrix add up."""
    model = tiny("qwen3_vl", tie_word_embeddings=True)
    model.lm_head.weight = model.model.language_model.embed_tokens.weight
    compare(model, mixed_groups("qwen3_vl"))


def test_vision_features_after_every_layer() -> None:
    """As many deepstack levels as layers: the last layer cannot leave out prompt tokens."""
    compare(tiny("qwen3_vl", num_hidden_layers=2), mixed_groups("qwen3_vl"))


def test_the_kernel_of_other_devices_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "choose", lambda q, bias: KERNELS["plain"])
    compare(tiny("qwen3_vl"), mixed_groups("qwen3_vl"))


@pytest.mark.parametrize("kind", CLASSES)
def test_gradient_checkpointing_changes_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer of the language model and of the tower runs once more, in a model that stays in evaluation mode."""
    model, groups, calls = tiny(kind), mixed_groups(kind), []  # type: ignore[var-annotated]
    for layer in (*model.model.language_model.layers, *model.model.visual.blocks):
        part = layer.mlp
        monkeypatch.setattr(part, "forward", lambda *a, f=part.forward: (calls.append(1), f(*a))[1])
    plain = gradients(sum(x.sum() for x in score(model, groups).log_prob), model)  # type: ignore[arg-type]
    once = len(calls)
    set_checkpointing(model, True)
    loss = sum(x.sum() for x in score(model, groups).log_prob)
    assert len(calls) == 2 * once and not model.training
    found = gradients(loss, model)  # type: ignore[arg-type]
    assert len(calls) == 3 * once
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
    set_checkpointing(model, False)
    gradients(sum(x.sum() for x in score(model, groups).log_prob), model)  # type: ignore[arg-type]
    assert len(calls) == 4 * once


def test_the_tower_runs_once_for_all_prompts_and_may_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    model, groups = tiny("qwen3_vl"), mixed_groups("qwen3_vl")
    calls: list[tuple[int, ...]] = []
    monkeypatch.setattr(model.model.visual, "forward", _counted(model.model.visual.forward, calls))
    score(model, groups)
    visions = encode_vision(model, [p for p, _ in groups])
    assert calls == [(24 + 32 + 4 + 32 + 24, 96)] * 2
    expected = score(model, groups, visions=visions).log_prob
    frozen = [one.detach() for one in visions]
    found = score(model, groups, visions=frozen).log_prob
    assert len(calls) == 2
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)
    loss = torch.cat(found).sum()
    assert all(g is None for name, g in gradients(loss, model).items() if "visual" in name)
    assert not visions[1].embeds.numel() and len(visions[1].deepstack) == 2


def test_without_gradient_the_tower_runs_in_bounded_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, groups = tiny("qwen3_vl"), mixed_groups("qwen3_vl")
    prompts, calls = [p for p, _ in groups], []  # type: ignore[var-annotated]
    expected = encode_vision(model, prompts)
    monkeypatch.setattr(model.model.visual, "forward", _counted(model.model.visual.forward, calls))
    monkeypatch.setattr(vision, "MOST_PATCHES", 40)
    with torch.no_grad():
        found = encode_vision(model, prompts)
    assert [rows for rows, _ in calls] == [24, 36, 32, 24]
    for one, other in zip(found, expected, strict=True):
        for a, b in zip((one.embeds, *one.deepstack), (other.embeds, *other.deepstack), strict=True):
            torch.testing.assert_close(a, b)


def _counted(forward: Any, calls: list[tuple[int, ...]]) -> Any:
    def counted(pixels: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(tuple(pixels.shape))
        return forward(pixels, *args, **kwargs)

    return counted


def test_no_tower_without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = tiny("qwen2_vl"), []  # type: ignore[var-annotated]
    monkeypatch.setattr(model.model.visual, "forward", _counted(model.model.visual.forward, calls))
    visions = encode_vision(model, [prompt("qwen2_vl", [3]), prompt("qwen2_vl", [4])])
    assert not calls and all(one.embeds.shape == (0, 32) for one in visions)


def test_half_precision_keeps_float32_log_probs() -> None:
    """In bfloat16 both ways round differently; they agree to its precision."""
    model, groups = tiny("qwen3_vl").bfloat16(), mixed_groups("qwen3_vl")
    exact = tiny("qwen3_vl")
    for log_prob, plain in zip(score(model, groups).log_prob, score(exact, groups).log_prob, strict=True):
        assert log_prob.dtype == torch.float32
        torch.testing.assert_close(log_prob, plain, atol=0.5, rtol=0.2)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = score(exact, groups).log_prob
    sum(x.sum() for x in mixed).backward()  # type: ignore[union-attr]
    for log_prob, plain in zip(mixed, score(exact, groups).log_prob, strict=True):
        torch.testing.assert_close(log_prob, plain, atol=0.5, rtol=0.2)


def test_other_models_are_refused() -> None:
    model = tiny("qwen3_vl")
    assert supports(model) and not supports(torch.nn.Linear(2, 2)) and not supports(model.model)
    changed = copy.deepcopy(model)
    changed.lm_head = torch.nn.Linear(32, 70)
    assert not supports(changed)
    with pytest.raises(UserError, match="expected a plain Linear without bias"):
        score(changed, mixed_groups("qwen3_vl"))
    changed = copy.deepcopy(model)
    changed.model.language_model.config.attention_dropout = 0.1
    with pytest.raises(UserError, match=r"attention_dropout is 0\.1"):
        score(changed, mixed_groups("qwen3_vl"))


def test_truncated_pictures_are_named() -> None:
    whole = prompt("qwen3_vl", [2, ("image", 1, 4, 4), 3])
    cut = type(whole)(whole.input_ids[:5], whole.kinds[:5], whole.media)
    with pytest.raises(UserError, match="prompt 1 has 2 image tokens, but its images give 4"):
        encode_vision(tiny("qwen3_vl"), [whole, cut])
