"""Other families through `from_pretrained`: Qwen2-VL and Qwen2.5-VL both ways, SmolVLM and InternVL the general way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmrl.errors import UserError
from mmrl.rollout import Chunk, Draw, Prompt, Rollout, Sample
from mmrl.vlm import tiny, tiny_others
from mmrl.vlm.models import Vlm
from mmrl.vlm.plan import VlmPlan, VlmSampling
from mmrl.vlm.train import VlmTrainSpec

QWEN = ("tiny_qwen2vl", "tiny_qwen25vl")
OTHERS = ("tiny_internvl", "tiny_smolvlm")
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


def roll(policy: Vlm, tokens: int = 8) -> Rollout:
    draws = [Draw(p, g, m, 1000 + 10 * g + m, 50 + g) for g, p in enumerate(prompts()) for m in range(3)]
    return policy.rollout(draws, VlmPlan(max_new_tokens=tokens), torch.ones(tokens, dtype=torch.bool))


def whole(rollout: Rollout) -> Chunk:
    rows, steps = rollout.mask.shape
    return Chunk(torch.arange(rows), torch.arange(steps).expand(rows, -1))


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_the_first_ratio_is_one(name: str, way: str, folders: dict[str, Path]) -> None:
    policy = policy_of(folders[name], way)
    assert policy.engine.name == ("padded" if name in OTHERS else way)
    rollout = roll(policy)
    out = policy.replay(rollout, whole(rollout))
    assert ((out.log_prob.detach() - rollout.log_prob) * rollout.mask).abs().max() < 1e-4
    out.log_prob.sum().backward()
    missing = [key for key, p in policy.trainable().items() if p.grad is None]
    # position tables for pictures that are not there, and layers that the model itself does not use
    assert all("mask_token" in key or "post_layernorm" in key or "layernorm" in key for key in missing), missing
    for view in ("masked", "blank"):
        seen = policy.replay(rollout, whole(rollout), view)
        change = ((seen.log_prob - out.log_prob) * rollout.mask).abs().sum(1).detach()
        assert (change > 1e-2).tolist() == policy.has_view(rollout, whole(rollout), view).tolist()


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
    placeholder = policy.encoder.processor.image_token_id
    for row, draw in enumerate(rollout.draws):
        answer = rollout.payload.answers[row]
        if (answer == placeholder).any():
            continue  # the plain call would look for another picture
        encoded = policy.encoder.encode(draw.prompt)
        ids = torch.cat([encoded.input_ids, answer])[None]
        logits = policy.model(input_ids=ids, attention_mask=torch.ones_like(ids), **encoded.media).logits
        log_p = torch.log_softmax(logits[0, len(encoded) - 1 : -1], -1)
        own = log_p[torch.arange(len(answer)), answer]
        torch.testing.assert_close(out.log_prob[row, : len(answer)], own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_greedy_answers_are_those_of_transformers(name: str, way: str, folders: dict[str, Path]) -> None:
    policy = policy_of(folders[name], way)
    plan = VlmSampling(max_new_tokens=8, temperature=0)
    for prompt in prompts():
        encoded = policy.encoder.encode(prompt)
        extra = {"mm_token_type_ids": encoded.kinds[None]} if name in QWEN else {}
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
def test_a_lora_spares_the_vision_tower_when_asked(name: str, folders: dict[str, Path]) -> None:
    policy = policy_of(folders[name], spec=VlmTrainSpec(mode="lora", rank=2, alpha=4, freeze_vision=True))
    assert policy.trainable() and not any("vision" in key for key in policy.trainable())
    everywhere = policy_of(folders[name], spec=VlmTrainSpec(mode="lora", rank=2, alpha=4))
    assert any("vision" in key for key in everywhere.trainable())


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
