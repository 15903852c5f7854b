"""What a stage trains of a vision-language model, what its reference is, and what reaches the disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmrl.errors import UserError
from mmrl.rollout import Chunk, Draw, Prompt, Rollout, Sample
from mmrl.vlm.models import TinyQwen3VL, Vlm
from mmrl.vlm.plan import VlmPlan, VlmSampling
from mmrl.vlm.tiny import build_tiny_qwen3vl
from mmrl.vlm.train import VlmTrainSpec
from mmrl.vlm.views import Views

LORA = VlmTrainSpec(mode="lora", rank=4, alpha=8)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def policy_of(spec: VlmTrainSpec | None = None, reference: bool = False, **options: Any) -> TinyQwen3VL:
    policy = TinyQwen3VL(**options)
    policy.load("cpu")
    policy.prepare(spec or VlmTrainSpec(), reference)
    return policy


def draws_of(members: int = 2) -> list[Draw]:
    picture = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    prompts = [Prompt("a", "How many red squares are there?", (picture,)), Prompt("b", "Answer yes or no.")]
    return [Draw(p, g, m, 100 + 10 * g + m, g) for g, p in enumerate(prompts) for m in range(members)]


def roll(policy: Any, tokens: int = 8) -> Rollout:
    return policy.rollout(draws_of(), VlmPlan(max_new_tokens=tokens), torch.ones(tokens, dtype=torch.bool))


def whole(rollout: Rollout) -> Chunk:
    rows, steps = rollout.mask.shape
    return Chunk(torch.arange(rows), torch.arange(steps).expand(rows, -1))


def log_prob(policy: Any, rollout: Rollout, **options: Any) -> torch.Tensor:
    return policy.replay(rollout, whole(rollout), **options).log_prob.detach()


def nudge(policy: Any, size: float = 0.05) -> None:
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter += size * torch.randn(parameter.shape, generator=g)


# ---- what is trained


def test_everything_is_trained_unless_something_is_frozen() -> None:
    every = set(policy_of().trainable())
    tower = {name for name in every if ".visual." in name}
    merger = {name for name in tower if "merger" in name}
    assert merger and tower - merger and every - tower
    assert set(policy_of(VlmTrainSpec(freeze_vision=True)).trainable()) == every - (tower - merger)
    assert set(policy_of(VlmTrainSpec(freeze_merger=True)).trainable()) == every - merger
    assert set(policy_of(VlmTrainSpec(freeze_vision=True, freeze_merger=True)).trainable()) == every - tower
    some = policy_of(VlmTrainSpec(parameters=("*layers.1.mlp.*", "*visual.blocks.0.*")))
    assert set(some.trainable()) == {n for n in every if "layers.1.mlp." in n or "visual.blocks.0." in n}


def test_a_pattern_or_target_that_fits_nothing_is_named() -> None:
    policy = policy_of()
    with pytest.raises(UserError, match=r"'\*layers.1.mpl.\*' fits no parameter of model; near: .*layers.1.mlp"):
        policy.check_loaded(VlmTrainSpec(parameters=("*layers.1.mpl.*",)), None)
    with pytest.raises(UserError, match=r"outside model.visual.blocks?.* \(frozen\)|fits no parameter"):
        policy.check_loaded(VlmTrainSpec(parameters=("*visual.blocks*",), freeze_vision=True), None)
    with pytest.raises(UserError, match=r"LoRA target 'q_porj' matches no layer of Qwen3VL.*near names: q_proj"):
        policy.check_loaded(VlmTrainSpec(mode="lora", targets=("q_porj",)), None)
    with pytest.raises(UserError, match="LoRA on the output layer"):
        policy.check_loaded(VlmTrainSpec(mode="lora", targets=("lm_head",)), None)
    assert policy.trainable().keys() == policy_of().trainable().keys()  # checking changes nothing


def test_options_of_the_other_mode_are_refused() -> None:
    with pytest.raises(ValueError, match="rank belongs to mode: lora, but mode is full"):
        VlmTrainSpec.model_validate({"rank": 8})
    with pytest.raises(ValueError, match="parameters belongs to mode: full"):
        VlmTrainSpec.model_validate({"mode": "lora", "parameters": ["*"]})


def test_lora_starts_as_the_model_and_leaves_vision_alone_when_asked() -> None:
    plain = policy_of()
    rollout = roll(plain)
    policy = policy_of(VlmTrainSpec(mode="lora", rank=4, alpha=8, targets=("q_proj", "qkv", "linear_fc1")))
    assert all("lora_" in name for name in policy.trainable())
    assert any("visual" in name for name in policy.trainable())
    torch.testing.assert_close(log_prob(policy, rollout), log_prob(plain, rollout), rtol=1e-5, atol=1e-6)
    frozen = policy_of(LORA.model_copy(update={"targets": ("q_proj", "linear_fc1"), "freeze_vision": True}))
    assert {name for name in frozen.trainable() if "visual" in name} == {
        name for name in frozen.trainable() if "merger" in name
    }
    assert not policy.vision_is_frozen and policy_of(LORA).vision_is_frozen


@pytest.mark.parametrize("spec", [VlmTrainSpec(), LORA])
def test_the_reference_is_the_policy_at_the_start_of_the_stage(spec: VlmTrainSpec) -> None:
    policy = policy_of(spec, reference=True)
    rollout = roll(policy)
    start = log_prob(policy, rollout)
    nudge(policy)
    assert (log_prob(policy, rollout) - start).abs().max() > 1e-2
    torch.testing.assert_close(log_prob(policy, rollout, model="reference"), start, rtol=1e-5, atol=1e-6)
    out = policy.replay(rollout, whole(rollout))
    against = policy.replay(rollout, whole(rollout), model="reference")
    assert not against.log_prob.requires_grad and out.log_prob.requires_grad
    assert float(policy.divergence(out, against).detach().sum()) > 0.01
    out.log_prob.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in policy.trainable().values())


@pytest.mark.parametrize("scoring", ["packed", "padded"])
@pytest.mark.parametrize("spec", [VlmTrainSpec(), VlmTrainSpec(parameters=("*layers.1.*",))])
def test_the_reference_of_full_training_in_bfloat16_rounds_as_the_policy_does(scoring: str, spec: VlmTrainSpec) -> None:
    policy = policy_of(spec, reference=True, dtype="bfloat16", scoring=scoring)
    rollout = roll(policy)
    assert {p.dtype for p in policy.trainable().values()} == {torch.float32}
    start = log_prob(policy, rollout)
    assert torch.equal(log_prob(policy, rollout, model="reference"), start)  # so a KL term starts at 0
    nudge(policy)
    assert (log_prob(policy, rollout) - start).abs().max() > 1e-2
    assert torch.equal(log_prob(policy, rollout, model="reference"), start)


def test_the_reference_of_full_training_keeps_the_dtype_of_what_autocast_narrows() -> None:
    policy = policy_of(reference=True, dtype="bfloat16")
    dtypes = {name: value.dtype for name, value in policy.frozen_state().items()}
    wide = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert any("embed_tokens" in name for name in wide) and any("norm" in name for name in wide)
    assert not any("_proj." in name or "linear_fc" in name for name in wide)
    loaded = TinyQwen3VL(dtype="bfloat16")
    loaded.load("cpu")
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(policy.frozen_state()[f"reference.model.{name}"].to(value.dtype), value)


def test_pixels_are_forgotten_where_features_are_kept() -> None:
    for spec, kept in ((VlmTrainSpec(freeze_vision=True, freeze_merger=True), False), (VlmTrainSpec(), True)):
        rollout = roll(policy_of(spec))
        seen = rollout.payload.seen["original"]
        assert ("pixel_values" in seen.encoded[0].media) is kept and (seen.visions is None) is kept
        assert "image_grid_thw" in seen.encoded[0].media


def test_it_is_said_what_a_lora_is_on() -> None:
    policy = TinyQwen3VL()
    assert "on the language model's q_proj, k_proj" in policy.trains(LORA)
    assert policy.trains(LORA.model_copy(update={"targets": ("qkv",)})) == "a LoRA of rank 4 (alpha 8) on qkv"


def test_without_a_reference_there_is_a_clear_error() -> None:
    policy = policy_of()
    rollout = roll(policy)
    with pytest.raises(UserError, match="no reference was kept"):
        policy.replay(rollout, whole(rollout), model="reference")


def test_features_of_a_frozen_tower_are_made_once_per_rollout_and_view(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for spec, expected in ((VlmTrainSpec(freeze_vision=True, freeze_merger=True), 1), (VlmTrainSpec(), 4)):
        policy = policy_of(spec)
        calls.clear()
        tower = policy.model.model.visual.forward
        monkeypatch.setattr(
            policy.model.model.visual, "forward", lambda *args, _own=tower, **kw: calls.append(1) or _own(*args, **kw)
        )
        rollout = roll(policy)
        for chunk in policy.chunks(rollout, rollout.mask, 2):
            torch.testing.assert_close(
                policy.replay(rollout, chunk).log_prob.detach(), chunk.take(rollout.log_prob), rtol=1e-4, atol=1e-5
            )
        for _ in range(2):
            policy.replay(rollout, Chunk(torch.tensor([0]), torch.arange(3)[None]))
        assert len(calls) == expected
        policy.replay(rollout, whole(rollout), "masked")
        policy.replay(rollout, whole(rollout), "masked")
        assert len(calls) == expected + (1 if expected == 1 else 2)


def test_the_whole_of_a_stage_uses_the_frozen_features_in_its_gradient() -> None:
    spec = VlmTrainSpec(freeze_vision=True, freeze_merger=True)
    gradients = []
    for scoring in ("packed", "padded"):
        policy = policy_of(spec, scoring=scoring)
        rollout = roll(policy)
        policy.replay(rollout, whole(rollout)).log_prob.sum().backward()
        gradients.append({name: p.grad for name, p in policy.trainable().items() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name], rtol=1e-3, atol=1e-4, msg=name)


# ---- stages, checkpoints


def test_a_lora_is_merged_when_the_next_stage_starts() -> None:
    policy = policy_of(LORA)
    nudge(policy)
    rollout = roll(policy)
    trained = log_prob(policy, rollout)
    policy.prepare(VlmTrainSpec(parameters=("*norm*",)), True)
    assert not any("lora" in name or "base_layer" in name for name, _ in policy.model.named_parameters())
    torch.testing.assert_close(log_prob(policy, rollout), trained, rtol=1e-4, atol=1e-5)
    policy.prepare(LORA, False)
    torch.testing.assert_close(log_prob(policy, rollout), trained, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("second", [VlmTrainSpec(parameters=("*mlp*",)), LORA])
def test_a_checkpoint_restores_everything(second: VlmTrainSpec) -> None:
    policy = policy_of()
    nudge(policy)
    policy.prepare(second, True)
    nudge(policy)
    rollout = roll(policy)
    frozen = {name: value.clone() for name, value in policy.frozen_state().items()}
    trained = {name: value.detach().clone() for name, value in policy.trainable().items()}
    other = policy_of(second, reference=True)
    assert (log_prob(other, rollout) - log_prob(policy, rollout)).abs().max() > 1e-2
    other.load_frozen_state(frozen)
    with torch.no_grad():
        for name, parameter in other.trainable().items():
            parameter.copy_(trained[name])
    for model in ("policy", "reference"):
        torch.testing.assert_close(
            log_prob(other, rollout, model=model), log_prob(policy, rollout, model=model), rtol=1e-5, atol=1e-6
        )
    with pytest.raises(UserError, match="model weights of 'clip'"):
        other.load_frozen_state({"model.clip.weight": torch.zeros(1)})


# ---- files


@pytest.mark.parametrize("spec", [VlmTrainSpec(), LORA])
def test_a_saved_model_is_one_of_transformers(spec: VlmTrainSpec, tmp_path: Path) -> None:
    policy = policy_of(spec)
    nudge(policy)
    rollout = roll(policy)
    policy.export(tmp_path / "model", "transformers", VlmSampling(max_new_tokens=9, temperature=0))
    torch.testing.assert_close(log_prob(policy, rollout), rollout.log_prob, rtol=1e-4, atol=1e-5)  # still the same
    loaded = Vlm(path=str(tmp_path / "model"), dtype="float32")
    loaded.load("cpu")
    loaded.prepare(VlmTrainSpec(), False)
    again = roll(loaded)
    assert [s.text for s in again.samples] == [s.text for s in rollout.samples]
    torch.testing.assert_close(again.log_prob, rollout.log_prob, rtol=1e-4, atol=1e-5)
    readme = (tmp_path / "model" / "README.md").read_text()
    assert "AutoModelForImageTextToText" in readme and "max_new_tokens=9, do_sample=False" in readme


def test_a_lora_loads_with_peft(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    build_tiny_qwen3vl(tmp_path / "base")
    policy = Vlm(path=str(tmp_path / "base"), dtype="float32")
    policy.load("cpu")
    policy.prepare(LORA, False)
    nudge(policy)
    policy.export(tmp_path / "lora", "peft")
    base: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    model = PeftModel.from_pretrained(base, str(tmp_path / "lora"))
    ids = torch.arange(10)[None]
    torch.testing.assert_close(model(input_ids=ids).logits, policy.model(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["r"] == 4 and config["lora_alpha"] == 8
    assert "PeftModel" in (tmp_path / "lora" / "README.md").read_text()


def test_a_lora_that_is_not_the_whole_change_is_not_exported(tmp_path: Path) -> None:
    policy = policy_of()
    with pytest.raises(UserError, match="there is no LoRA to export"):
        policy.export(tmp_path / "x", "peft")
    policy.prepare(LORA, False)
    with pytest.raises(UserError, match="an earlier stage changed the base weights"):
        policy.export(tmp_path / "x", "peft")
    with pytest.raises(UserError, match="cannot export to 'gguf'; valid: transformers, peft"):
        policy.export(tmp_path / "x", "gguf")


def test_full_training_of_a_bfloat16_model_is_saved_in_bfloat16(tmp_path: Path) -> None:
    policy = policy_of(dtype="bfloat16")
    assert {p.dtype for p in policy.trainable().values()} == {torch.float32}
    policy.save(tmp_path)
    loaded = Vlm(path=str(tmp_path), dtype="bfloat16")
    loaded.load("cpu")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert {p.dtype for p in policy.trainable().values()} == {torch.float32}


def test_the_same_seed_gives_the_same_tiny_model() -> None:
    from mmrl.vlm.tiny_text import tiny_tokenizer

    one, other, different = policy_of(), policy_of(), policy_of(seed=1)
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.model.lm_head.weight, different.model.lm_head.weight)
    assert 1.2e6 < sum(p.numel() for p in one.model.parameters()) < 1.4e6
    first, second = tiny_tokenizer(), tiny_tokenizer()
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    text = "<think>I count 3 red squares, é</think> <answer>3</answer>"
    ids = first(text + "<|im_end|>").input_ids
    assert first.decode(ids, skip_special_tokens=True) == text
    assert len(first("<think></think><answer></answer>").input_ids) == 4
    assert len(one.encoder.encode(draws_of()[0].prompt)) < 30


def test_options_come_back_from_a_dump() -> None:
    policy = TinyQwen3VL(views=Views(), template="Look: {prompt}", system="Be brief.")
    assert TinyQwen3VL.model_validate(policy.model_dump(mode="json")) == policy
    prompt = Sample(draws_of()[0].prompt).prompt
    policy.load("cpu")
    text = policy.encoder.tokenizer.decode(policy.encoder.encode(prompt).input_ids)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<|vision_start|>")
    assert "Look: How many" in text and text.endswith("<|im_start|>assistant\n")
