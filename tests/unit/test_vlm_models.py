"""Other families through `from_pretrained`: Qwen2-VL and Qwen2.5-VL both ways, SmolVLM, InternVL and Gemma 3 the general way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.modeling_layers import GradientCheckpointingLayer

from mmrl.errors import UserError
from mmrl.rollout import Chunk, Draw, Prompt, Rollout, Sample
from mmrl.vlm import tiny, tiny_others
from mmrl.vlm.models import Vlm
from mmrl.vlm.plan import VlmPlan, VlmSampling
from mmrl.vlm.train import TARGETS, VlmTrainSpec

QWEN = ("tiny_qwen2vl", "tiny_qwen25vl")
OTHERS = ("tiny_internvl", "tiny_smolvlm", "tiny_gemma3")
WAYS = [(name, way) for name in QWEN for way in ("packed", "padded")] + [(name, "auto") for name in OTHERS]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name in (*QWEN, *OTHERS):
        if name == "tiny_smolvlm":
            pytest.importorskip("num2words")
        found[name] = tmp_path_factory.mktemp(name)
        tiny.save(*getattr(tiny_others, name)(), found[name])
    return found


def policy_of(folder: Path, scoring: str = "auto", spec: VlmTrainSpec | None = None, **options: Any) -> Vlm:
    policy = Vlm(path=str(folder), scoring=scoring, **{"dtype": "float32", **options})
    policy.load("cpu")
    policy.prepare(spec or VlmTrainSpec(), True)
    return policy


def picture(seed: int, height: int = 56, width: int = 56) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def prompts() -> list[Prompt]:
    video = np.stack([picture(seed) for seed in range(4)])
    return [
        Prompt("one", "How many red squares are there?", (picture(0),)),
        Prompt("text", "Answer yes or no."),
        Prompt("two", "<image> or <image>: which is red?", (picture(1), picture(2, 28, 84))),
        Prompt("video", "What comes next?", (video,), meta={"fps": 2}),
    ]


def known(policy: Vlm) -> list[Prompt]:
    """Without the video, which Gemma 3 does not take."""
    return [prompt for prompt in prompts() if prompt.id != "video" or policy.encoder.tokens["video"]]


def roll(policy: Vlm, tokens: int = 8) -> Rollout:
    draws = [Draw(p, g, m, 1000 + 10 * g + m, 50 + g) for g, p in enumerate(known(policy)) for m in range(3)]
    return policy.rollout(draws, VlmPlan(max_new_tokens=tokens), torch.ones(tokens, dtype=torch.bool))


def whole(rollout: Rollout) -> Chunk:
    rows, steps = rollout.mask.shape
    return Chunk(torch.arange(rows), torch.arange(steps).expand(rows, -1))


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_the_first_ratio_is_one(name: str, way: str, folders: dict[str, Path]) -> None:
    policy = policy_of(folders[name], way)
    assert policy.runner.name == ("padded" if name in OTHERS else way)
    rollout = roll(policy)
    out = policy.replay(rollout, whole(rollout))
    assert ((out.log_prob.detach() - rollout.log_prob) * rollout.mask).abs().max() < 1e-4
    out.log_prob.sum().backward()
    missing = [key for key, p in policy.trainable().items() if p.grad is None]
    # position tables for pictures that are not there, and layers that the model itself does not use
    unused = ("mask_token", "post_layernorm", "layernorm", "vision_tower.head.")
    assert all(any(part in key for part in unused) for key in missing), missing
    for view in ("masked", "blank"):
        seen = policy.replay(rollout, whole(rollout), view)
        change = ((seen.log_prob - out.log_prob) * rollout.mask).abs().sum(1).detach()
        assert (change > 1e-2).tolist() == policy.has_view(rollout, whole(rollout), view).tolist()


@pytest.mark.parametrize("name", (*QWEN, *OTHERS))
def test_in_bfloat16_the_reference_of_full_training_rounds_as_the_policy_does(
    name: str, folders: dict[str, Path]
) -> None:
    policy = policy_of(folders[name], dtype="bfloat16")
    prompt = Prompt("one", "How many red squares are there?", (picture(0),))
    answer = policy.given([Sample(prompt, text="two red ones")])
    own, reference = (policy.replay(answer, whole(answer), model=model) for model in ("policy", "reference"))
    assert torch.equal(own.log_prob.detach(), reference.log_prob)


@pytest.mark.parametrize("name", QWEN)
def test_packed_and_padded_agree(name: str, folders: dict[str, Path]) -> None:
    packed, padded = (policy_of(folders[name], way) for way in ("packed", "padded"))
    one, other = roll(packed), roll(padded)
    assert [s.text for s in one.samples] == [s.text for s in other.samples]
    torch.testing.assert_close(one.log_prob, other.log_prob, rtol=1e-4, atol=1e-4)
    outs = [policy.replay(one, whole(one)) for policy in (packed, padded)]
    torch.testing.assert_close(outs[0].log_prob, outs[1].log_prob, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outs[0].entropy, outs[1].entropy, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", OTHERS)
def test_scores_equal_one_plain_call_per_answer(name: str, folders: dict[str, Path]) -> None:
    policy = policy_of(folders[name])
    rollout = roll(policy)
    out = policy.replay(rollout, whole(rollout))
    placeholder = policy.model.config.image_token_id
    for row, draw in enumerate(rollout.draws):
        answer = rollout.payload.answers[row]
        if (answer == placeholder).any():
            continue  # the plain call would look for another picture
        encoded = policy.encoder.encode(draw.prompt)
        ids = torch.cat([encoded.input_ids, answer])[None]
        extra = {}
        if encoded.token_types is not None:
            extra["token_type_ids"] = torch.cat([encoded.token_types, torch.zeros_like(answer)])[None]
        logits = policy.model(input_ids=ids, attention_mask=torch.ones_like(ids), **encoded.media, **extra).logits
        log_p = torch.log_softmax(logits[0, len(encoded) - 1 : -1], -1)
        own = log_p[torch.arange(len(answer)), answer]
        torch.testing.assert_close(out.log_prob[row, : len(answer)], own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_greedy_answers_are_those_of_transformers(name: str, way: str, folders: dict[str, Path]) -> None:
    policy = policy_of(folders[name], way)
    plan = VlmSampling(max_new_tokens=8, temperature=0)
    for prompt in known(policy):
        encoded = policy.encoder.encode(prompt)
        extra = {"mm_token_type_ids": encoded.kinds[None]} if name in QWEN else {}
        if encoded.token_types is not None:
            extra["token_type_ids"] = encoded.token_types[None]
        tokens = policy.model.generate(
            input_ids=encoded.input_ids[None], attention_mask=torch.ones_like(encoded.input_ids)[None],
            **encoded.media, **extra, max_new_tokens=8, do_sample=False,
        )[0, len(encoded) :]  # fmt: skip
        draw = Draw(prompt, 0, 0, 1, 1)
        assert policy.generate([draw], plan)[0].text == policy.encoder.decode(tokens), prompt.id


@pytest.mark.parametrize("name", OTHERS)
def test_supervised_loss_and_frozen_vision(name: str, folders: dict[str, Path]) -> None:
    policy = policy_of(folders[name], spec=VlmTrainSpec(freeze_vision=True))
    loss = policy.supervised_loss([Sample(prompts()[0], text="<answer>3</answer>")], [0])
    loss.sum().backward()
    grads = {key for key, p in policy.trainable().items() if p.grad is not None and p.grad.any()}
    assert grads and not any("vision_tower" in key or "vision_model" in key for key in grads)
    assert any("multi_modal_projector" in key or "connector" in key for key in grads)
    assert not policy.vision_is_frozen
    policy.prepare(VlmTrainSpec(freeze_vision=True, freeze_merger=True), False)
    assert policy.vision_is_frozen
    assert not any("connector" in key or "projector" in key for key in policy.trainable())


@pytest.mark.parametrize("name", OTHERS)
def test_pictures_of_gemma_look_both_ways(name: str, folders: dict[str, Path]) -> None:
    """What is scored first is what the model says to the processor's own output, all of it."""
    policy = policy_of(folders[name])
    prompt = prompts()[2]
    draw = Draw(prompt, 0, 0, 1, 1)
    rollout = policy.rollout([draw], VlmPlan(max_new_tokens=1), torch.ones(1, dtype=torch.bool))
    pictures = [Image.fromarray(np.asarray(item)) for item in prompt.media]
    own = policy.encoder.processor(
        text=[policy.encoder.render(prompt, list(prompt.media))], images=pictures, return_tensors="pt"
    )
    assert ("token_type_ids" in own) == (name == "tiny_gemma3")
    found = policy.replay(rollout, whole(rollout)).dist.states[0][0]
    torch.testing.assert_close(found, policy.model(**own).logits[0, -1], atol=1e-5, rtol=1e-4)
    if own.pop("token_type_ids", None) is not None:
        assert (found - policy.model(**own).logits[0, -1]).abs().max() > 0.01


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_gradient_checkpointing_changes_nothing(name: str, way: str, folders: dict[str, Path]) -> None:
    policy = policy_of(folders[name], way)
    rollout, found, calls = roll(policy), [], [0]
    blocks = [m for m in policy.model.modules() if isinstance(m, GradientCheckpointingLayer)]
    for block in blocks:
        block.register_forward_hook(lambda *_: calls.append(1))
    for on in (False, True):
        policy.prepare(VlmTrainSpec(gradient_checkpointing=on), False)
        assert all(block.gradient_checkpointing == on and not block.training for block in blocks)
        with kept() as sizes:
            out = policy.replay(rollout, whole(rollout))
        weights = torch.randn(out.log_prob.shape, generator=torch.Generator().manual_seed(0))
        named = policy.trainable()
        grads = torch.autograd.grad(
            (out.log_prob * weights).sum() + out.entropy.sum(), list(named.values()), allow_unused=True
        )
        found.append((out.log_prob.detach(), dict(zip(named, grads, strict=True)), sum(sizes)))
    (before, plain, most), (after, again, least) = found
    assert torch.equal(before, after) and least < 0.7 * most
    assert all("forward" not in vars(block) for block in blocks)
    for key, gradient in plain.items():
        torch.testing.assert_close(again[key], gradient, msg=key)


@contextmanager
def kept() -> Iterator[list[int]]:
    """Sizes in bytes of the tensors that autograd keeps for the backward pass, each storage once."""
    seen: set[int] = set()
    sizes: list[int] = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in seen and not isinstance(x, torch.nn.Parameter):
            seen.add(x.untyped_storage().data_ptr())
            sizes.append(x.untyped_storage().nbytes())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield sizes


@pytest.mark.parametrize("name", (*QWEN, *OTHERS))
def test_the_default_lora_is_on_the_language_model_alone(name: str, folders: dict[str, Path]) -> None:
    policy = policy_of(folders[name], spec=VlmTrainSpec(mode="lora", rank=2, alpha=4))
    inside = ("language_model", "text_model")
    assert all(any(part in key for part in inside) for key in policy.trainable())
    assert {key.split(".lora_")[0].rsplit(".", 1)[-1] for key in policy.trainable()} == set(TARGETS)
    assert policy.vision_is_frozen
    tower = {"tiny_qwen2vl": "fc1", "tiny_qwen25vl": "*visual*gate_proj", "tiny_internvl": "*vision_tower*q_proj",
             "tiny_smolvlm": "*vision_model*q_proj", "tiny_gemma3": "*vision_tower*q_proj"}[name]  # fmt: skip
    both = policy_of(folders[name], spec=VlmTrainSpec(mode="lora", rank=2, alpha=4, targets=("q_proj", tower)))
    found = {key for key in both.trainable() if not any(part in key for part in inside)}
    assert found and found < set(both.trainable()) and not both.vision_is_frozen
    with pytest.raises(UserError, match=r"LoRA target '.*' matches no layer that is not frozen"):
        policy.prepare(VlmTrainSpec(mode="lora", freeze_vision=True, targets=(tower,)), False)


def test_what_cannot_be_loaded_is_one_clear_line(tmp_path: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"cannot load a vision-language model from '.*nothing'"):
        policy_of(tmp_path / "nothing")
    with pytest.raises(
        UserError, match=r"scoring: packed works with Qwen2-VL, .* not with InternVLForConditionalGeneration"
    ):
        policy_of(folders["tiny_internvl"], "packed")
    with pytest.raises(UserError, match="min_pixels and max_pixels do not apply to GotOcr2"):
        policy_of(folders["tiny_internvl"], max_pixels=1000)


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    model, processor = tiny_others.tiny_qwen2vl()
    processor.chat_template = None
    tiny.save(model, processor, tmp_path)
    with pytest.raises(UserError, match="has no chat template; use the instruction-tuned variant"):
        policy_of(tmp_path)


def test_freezing_what_has_no_known_name_is_refused() -> None:
    for key in ("freeze_vision", "freeze_merger"):
        with pytest.raises(UserError, match=f"train.{key}: no such part of Linear is known by its name"):
            VlmTrainSpec.model_validate({key: True}).choice(torch.nn.Linear(2, 2))
