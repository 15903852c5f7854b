"""What is checked before a stage runs, before and after the model is loaded; pictures and the conditioning cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mmrl.errors import UserError
from mmrl.generative.conditioning import Ask, ConditioningCache
from mmrl.generative.families.sd3 import SD3
from mmrl.generative.families.sd15 import SD15
from mmrl.generative.families.tiny import TinySD3, TinySD15
from mmrl.generative.policy import DenoisingPolicy
from mmrl.generative.train import TrainSpec
from mmrl.rollout import Draw, Prompt, Sample

SMALL: dict[str, Any] = {"layers": 2, "heads": 2, "head_dim": 16}
LORA = TrainSpec(mode="lora", rank=4, alpha=8)
CAPTIONS = ("one red circle", "a blue square left of a green triangle", "three green squares")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def loaded(kind: str = "sd3") -> DenoisingPolicy:
    policy: DenoisingPolicy = TinySD3(**SMALL) if kind == "sd3" else TinySD15(size=8, width=8)
    policy.load("cpu")
    return policy


@pytest.mark.parametrize(
    ("policy", "own", "other"), [(SD3(path="x"), "transformer", "unet"), (SD15(path="x"), "unet", "transformer")]
)
def test_parts_of_another_family_are_refused_before_anything_is_loaded(
    policy: DenoisingPolicy, own: Any, other: Any
) -> None:
    for spec in (TrainSpec(), LORA, TrainSpec(parts=(own, "text_encoders"))):
        policy.check_train(spec)
    with pytest.raises(ValueError, match=f"no '{other}'; valid: {own}, text_encoders"):
        policy.check_train(TrainSpec(parts=(own, other)))
    with pytest.raises(ValidationError):
        TrainSpec.model_validate({"parts": ["vae"]})


@pytest.mark.parametrize("spec", [TrainSpec(), LORA])
def test_float16_is_not_trained(spec: TrainSpec) -> None:
    with pytest.raises(ValueError, match=r"float16 cannot be trained .*; use bfloat16 or float32"):
        SD15(path="x", dtype="float16").check_train(spec)
    SD15(path="x", dtype="bfloat16").check_train(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TrainSpec(mode="lora", targets=("attn.to_qq",)), "'attn.to_qq' matches no layer"),
        (TrainSpec(parameters=("transformer_blocks.7.*",)), "'transformer_blocks.7.*' fits no parameter"),
        (TrainSpec(parts=("unet",)), "no 'unet'; valid: transformer, text_encoders"),
    ],
)
def test_a_stage_that_does_not_fit_the_loaded_model_is_refused(spec: TrainSpec, message: str) -> None:
    with pytest.raises(UserError, match=message):
        loaded().check_loaded(spec, None)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("sd3", {"height": 20}, r"multiples of 8 up to 24, got \(20, 24\); nearest: \(16, 24\)"),
        ("sd3", {"width": 32}, r"multiples of 8 up to 24, got \(24, 32\); nearest: \(24, 24\)"),
        ("sd15", {"height": 9}, r"multiples of 2, got \(9, 8\); nearest: \(8, 8\)"),
        ("sd15", {"num_steps": 2000}, "num_steps 2000 does not fit this model's scheduler"),
    ],
)
def test_a_plan_that_does_not_fit_the_loaded_model_is_refused(kind: str, options: dict[str, Any], message: str) -> None:
    policy = loaded(kind)
    for model in (policy.plan_type, policy.sampling_type):
        with pytest.raises(UserError, match=message):
            policy.check_loaded(None, model.model_validate(options))


@pytest.mark.parametrize("kind", ["sd3", "sd15"])
def test_a_check_changes_nothing(kind: str) -> None:
    policy = loaded(kind)
    before = {name: value.clone() for name, value in policy.adapter.network.state_dict().items()}
    config = dict(policy.adapter.pipe.scheduler.config)
    for spec in (TrainSpec(), LORA, TrainSpec(parts=("text_encoders",)), None):
        policy.check_loaded(spec, policy.plan_type(num_steps=4))
    policy.check_loaded(None, policy.sampling_type())
    after = policy.adapter.network.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    assert not policy.trainable() and not policy.frozen_state() and not policy.adapter.network.training
    assert dict(policy.adapter.pipe.scheduler.config) == config
    assert not any(parameter.requires_grad for parameter in policy.adapter.network.parameters())


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([(24, 24), (16, 24)], "are 24x24, 16x24 .* multiples of 8 up to 24 pixels; set the `size` option .* size: 24"),
        ([(20, 24), (20, 24)], "are 20x24 "),
        ([(32, 32)], "are 32x32 "),
    ],
)
def test_pictures_that_the_model_cannot_take_are_named(sizes: list[tuple[int, int]], message: str) -> None:
    policy = loaded()
    policy.prepare(TrainSpec(), False)
    pictures = [np.zeros((*size, 3), dtype=np.uint8) for size in sizes]
    with pytest.raises(UserError, match=message):
        policy.supervised_loss([Sample(Prompt("0", CAPTIONS[0]), images=(p,)) for p in pictures], [0] * len(sizes))
    assert policy.adapter.encode_images([np.zeros((16, 24, 3), dtype=np.uint8)]).shape == (1, 3, 16, 24)


@pytest.mark.parametrize(("kind", "options"), [("cps", {}), ("ode", {}), ("flow_sde", {"level": 0.0})])
def test_a_window_of_steps_without_a_density_trains_nothing(kind: str, options: dict[str, float]) -> None:
    policy = TinySD3()
    plan = policy.plan_type.model_validate({"num_steps": 6, "sampler": {"kind": kind, **options}})
    window = torch.zeros(6, dtype=torch.bool)
    window[-1] = True
    found = policy.stochastic_steps(plan, window)
    assert found.dtype == torch.bool and not (found & window).any()
    assert bool(window[-1]), "the argument is not changed"
    window[-2] = True
    assert policy.stochastic_steps(plan, window).tolist() == [False] * 4 + [kind == "cps", False]


@pytest.mark.parametrize("kind", ["sd3", "sd15"])
def test_a_warm_and_a_cold_cache_give_the_same_bits(kind: str) -> None:
    policy = loaded(kind)
    plan = policy.plan_type(num_steps=3, guidance_scale=2.0)
    draws = [Draw(Prompt(str(g), text), g, 0, seed=10 + g, group_seed=g) for g, text in enumerate(CAPTIONS)]
    steps = torch.ones(3, dtype=torch.bool)
    cold = policy.rollout(draws, plan, steps)
    policy.cache.clear()
    policy.rollout(draws[1:], plan, steps)
    kept = {ask.text for ask in policy.cache.kept}
    assert CAPTIONS[0] not in kept and CAPTIONS[1] in kept
    warm = policy.rollout(draws, plan, steps)
    assert torch.equal(warm.log_prob, cold.log_prob) and torch.equal(warm.payload.final, cold.payload.final)


def test_conditioning_is_kept_on_disk(tmp_path: Path) -> None:
    calls: list[list[Ask]] = []

    def encode(asks: list[Ask]) -> dict[str, torch.Tensor]:
        calls.append(asks)
        return {"prompt": torch.full((len(asks), 2, 3), float(len(asks[0].text)))}

    device, asks = torch.device("cpu"), [Ask("a"), Ask("bb")]
    first = ConditioningCache(encode, folder=tmp_path, identity="one").frozen(asks, device)
    again = ConditioningCache(encode, folder=tmp_path, identity="one").frozen(asks, device)
    assert len(calls) == 2 and torch.equal(first.tensors["prompt"], again.tensors["prompt"])
    ConditioningCache(encode, folder=tmp_path, identity="other").frozen(asks, device)
    assert len(calls) == 4


def test_conditioning_of_unequal_lengths_is_padded_behind() -> None:
    cache = ConditioningCache(lambda asks: {"prompt": torch.ones(1, len(asks[0].text), 2), "pooled": torch.ones(1, 3)})
    found = cache.frozen([Ask("a"), Ask("bbb")], torch.device("cpu")).rows([Ask("a")], torch.device("cpu"))
    assert found["prompt"].shape == (1, 3, 2) and found["prompt"].sum() == 2 and found["pooled"].shape == (1, 3)
