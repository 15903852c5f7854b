"""Stages, checkpoints, saving, exporting and loading of denoising policies."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
)
from torch import Tensor

from mmrl.errors import UserError
from mmrl.generative.families.sd3 import SD3
from mmrl.generative.families.sd15 import SD15
from mmrl.generative.families.tiny import TinySD3, TinySD15
from mmrl.generative.policy import DenoisingPolicy
from mmrl.generative.tiny import build_tiny_sd3, build_tiny_sd15, tiny_sd15
from mmrl.generative.tiny_text import PHRASE_TOKENS
from mmrl.generative.train import TrainSpec
from mmrl.rollout import Draw, Prompt

SMALL: dict[str, Any] = {"layers": 2, "heads": 2, "head_dim": 16}
LORA = TrainSpec(mode="lora", rank=4, alpha=8)
TEXT = "a blue square left of a green triangle"
DRAWS = [Draw(Prompt("0", TEXT), 0, m, seed=10 + m, group_seed=1) for m in range(2)]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(spec: TrainSpec | None = None, reference: bool = False, **options: Any) -> TinySD3:
    policy = TinySD3(**{**SMALL, **options})
    policy.load("cpu")
    policy.prepare(spec or TrainSpec(), reference)
    return policy


def nudge(policy: DenoisingPolicy, seed: int = 0) -> None:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=g)


def pictures(policy: DenoisingPolicy) -> Tensor:
    plan = policy.plan_type(num_steps=3)
    rollout = policy.rollout(DRAWS, plan, torch.ones(3, dtype=torch.bool))
    return rollout.payload.final


def plain(pipe: Any, **options: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        TEXT, num_inference_steps=3, generator=torch.Generator("cpu").manual_seed(10), output_type="np", **options
    )
    return (made.images[0] * 255).round().astype(np.uint8)


@pytest.mark.parametrize("before", [TrainSpec(), LORA])
def test_an_unmatched_lora_target_is_named_with_its_neighbours(before: TrainSpec) -> None:
    policy = tiny(before)
    spec = TrainSpec(mode="lora", targets=("attn.to_q", "attn.to_qq"))
    with pytest.raises(
        UserError, match=r"'attn.to_qq' matches no layer of SD3Transformer2DModel; near names: .*attn.to_q"
    ):
        policy.prepare(spec, False)


def test_lora_trains_nothing_but_its_own_weights() -> None:
    policy = tiny(LORA)
    names = list(policy.trainable())
    assert names and all("lora_" in name and name.startswith("transformer.") for name in names)
    for target in policy.adapter.lora_targets:
        assert any(f"{target}.lora_A" in name for name in names), target
    first = next(p for name, p in policy.trainable().items() if "lora_A" in name)
    second = next(p for name, p in policy.trainable().items() if "lora_B" in name)
    assert float(first.detach().std()) == pytest.approx(1 / 4, rel=0.3) and not second.any()


def test_a_stage_may_train_a_few_parameters_by_pattern() -> None:
    policy = tiny(LORA)
    policy.prepare(TrainSpec(parameters=("transformer_blocks.1.attn.*", "proj_out.bias")), True)
    names = list(policy.trainable())
    assert all(
        n.startswith("transformer.transformer_blocks.1.attn.") or n == "transformer.proj_out.bias" for n in names
    )
    assert len(names) > 8 and "transformer.proj_out.bias" in names
    assert "model.transformer.proj_out.weight" in policy.frozen_state()
    with pytest.raises(UserError, match=r"'transformer_blocks.7.*' fits no parameter of transformer; near"):
        policy.prepare(TrainSpec(parameters=("transformer_blocks.7.*",)), False)


def test_a_network_has_one_dtype_while_a_few_of_its_parameters_are_trained() -> None:
    policy = tiny(TrainSpec(parameters=("proj_out.bias",)), dtype="bfloat16")
    assert {p.dtype for p in policy.adapter.network.parameters()} == {torch.float32}
    policy.prepare(LORA, False)
    frozen = {p.dtype for p in policy.adapter.network.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16} and {p.dtype for p in policy.trainable().values()} == {torch.float32}


@pytest.mark.parametrize("parts", [("unet",), ("transformer", "unet")])
def test_a_part_that_the_model_lacks_is_named(parts: Any) -> None:
    with pytest.raises(UserError, match="no 'unet'; valid: transformer, text_encoders"):
        tiny(TrainSpec(parts=parts))


@pytest.mark.parametrize("second", [TrainSpec(), LORA])
def test_a_checkpoint_of_a_later_stage_restores_what_earlier_stages_changed(second: TrainSpec) -> None:
    policy = tiny(TrainSpec(parts=("transformer", "text_encoders")))
    nudge(policy)
    policy.prepare(second, True)
    nudge(policy, seed=1)
    wanted = pictures(policy)
    frozen = {name: value.clone() for name, value in policy.frozen_state().items()}
    trained = {name: value.detach().clone() for name, value in policy.trainable().items()}
    assert not set(trained) & {name.removeprefix("model.") for name in frozen}

    for reference in (True, False):
        other = tiny(second, reference)
        assert not torch.allclose(pictures(other), wanted, atol=1e-3)
        other.load_frozen_state(frozen)
        with torch.no_grad():
            for name, parameter in other.trainable().items():
                parameter.copy_(trained[name])
        torch.testing.assert_close(pictures(other), wanted)
    plan = policy.plan_type(num_steps=3)
    other = tiny(second, True)
    other.load_frozen_state(frozen)
    rollout = policy.rollout(DRAWS, plan, torch.ones(3, dtype=torch.bool))
    chunk = next(policy.chunks(rollout, rollout.mask, 6))
    one, two = (p.replay(rollout, chunk, model="reference").log_prob for p in (policy, other))
    torch.testing.assert_close(one, two)


def test_a_checkpoint_that_does_not_fit_is_named() -> None:
    with pytest.raises(UserError, match="unknown 'odd'"):
        tiny().load_frozen_state({"model.transformer.odd": torch.zeros(1)})
    with pytest.raises(UserError, match="weights of 'unet'"):
        tiny().load_frozen_state({"model.unet.odd": torch.zeros(1)})


def test_a_lora_stage_is_merged_before_the_next_stage() -> None:
    policy = tiny(LORA)
    nudge(policy)
    before = pictures(policy)
    policy.prepare(TrainSpec(), True)
    torch.testing.assert_close(pictures(policy), before, rtol=1e-3, atol=1e-4)
    assert not any("lora" in name for name in policy.trainable())
    policy.prepare(LORA, True)
    torch.testing.assert_close(pictures(policy), before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("spec", [TrainSpec(), LORA])
def test_a_saved_policy_is_a_plain_pipeline_and_loads_again(spec: TrainSpec, tmp_path: Path) -> None:
    policy = tiny(spec)
    nudge(policy)
    wanted = policy.generate(DRAWS, policy.plan_type(num_steps=3))[0].images[0]
    policy.save(tmp_path)
    assert not list(tmp_path.rglob("*.bin")) and list(tmp_path.rglob("*.safetensors"))
    pipe = StableDiffusion3Pipeline.from_pretrained(tmp_path)
    assert np.abs(plain(pipe, guidance_scale=1.0, max_sequence_length=PHRASE_TOKENS).astype(int) - wanted).max() <= 1
    again = SD3(path=str(tmp_path), dtype="float32", max_sequence_length=PHRASE_TOKENS)
    again.load("cpu")
    torch.testing.assert_close(pictures(again), pictures(policy), rtol=1e-4, atol=1e-4)
    assert policy.weights.is_lora == (spec.mode == "lora")
    pictures(policy)


def run_readme(folder: Path, seed: int, **replace: str) -> np.ndarray:
    """Execute the code block of an exported README.md."""
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.S)[0]
    for old, new in {"this folder": str(folder), "a prompt": TEXT, **replace}.items():
        code = code.replace(f'"{old}"', f'"{new}"')
    space: dict[str, Any] = {"seed": seed}
    exec(code, space)
    return np.asarray(space["image"])


@pytest.mark.parametrize("kind", ["sd3", "sd15", "second_order"])
def test_the_readme_of_an_export_makes_the_picture_of_generate(kind: str, tmp_path: Path) -> None:
    policy: DenoisingPolicy = TinySD15(size=8, width=8) if kind == "sd15" else TinySD3(**SMALL)
    policy.load("cpu")
    if kind == "second_order":
        config = {**policy.adapter.pipe.scheduler.config, "solver_order": 2}
        policy.adapter.pipe.scheduler = DPMSolverMultistepScheduler.from_config(config)
    plan = policy.plan_type(num_steps=4, guidance_scale=2.0)
    wanted = policy.generate(DRAWS, plan)[1].images[0]
    folder = policy.export(tmp_path / "out", "diffusers", plan)
    assert np.abs(run_readme(folder, DRAWS[1].seed).astype(int) - wanted).max() <= 1


def test_an_exported_lora_loads_in_diffusers_and_in_peft(tmp_path: Path) -> None:
    from peft import PeftModel

    policy = tiny(LORA)
    nudge(policy)
    plan = policy.plan_type(num_steps=3)
    wanted = policy.generate(DRAWS, plan)[0].images[0]
    build_tiny_sd3(tmp_path / "base", **SMALL)
    folder = policy.export(tmp_path / "lora", "peft", plan)
    made = run_readme(folder, DRAWS[0].seed, **{"the base model": str(tmp_path / "base")})
    assert np.abs(made.astype(int) - wanted).max() <= 1

    pipe = StableDiffusion3Pipeline.from_pretrained(tmp_path / "base")
    plain_base = plain(pipe, guidance_scale=1.0, max_sequence_length=PHRASE_TOKENS)
    assert np.abs(plain_base.astype(int) - wanted).max() > 1
    pipe.transformer = PeftModel.from_pretrained(pipe.transformer, folder).merge_and_unload()
    assert np.abs(plain(pipe, guidance_scale=1.0, max_sequence_length=PHRASE_TOKENS).astype(int) - wanted).max() <= 1
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 4


def test_exports_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    policy = tiny()
    with pytest.raises(UserError, match="valid: diffusers, peft"):
        policy.export(tmp_path, "onnx")
    with pytest.raises(UserError, match="there is no LoRA"):
        policy.export(tmp_path, "peft")
    nudge(policy)
    policy.prepare(LORA, False)
    with pytest.raises(UserError, match=r"changed the base weights \(transformer\)"):
        policy.export(tmp_path, "peft")


def test_a_downloaded_folder_and_the_model_in_memory_are_the_same(tmp_path: Path) -> None:
    build_tiny_sd3(tmp_path / "sd3", **SMALL)
    build_tiny_sd15(tmp_path / "sd15", size=8, width=8, prediction_type="v_prediction")
    pairs: tuple[tuple[DenoisingPolicy, DenoisingPolicy], ...] = (
        (SD3(path=str(tmp_path / "sd3"), dtype="float32", max_sequence_length=PHRASE_TOKENS), TinySD3(**SMALL)),
        (SD15(path=str(tmp_path / "sd15")), TinySD15(size=8, width=8, prediction_type="v_prediction")),
    )
    for loaded, made in pairs:
        loaded.load("cpu")
        made.load("cpu")
        torch.testing.assert_close(pictures(loaded), pictures(made))
    assert StableDiffusionPipeline.from_pretrained(tmp_path / "sd15").unet is not None


@pytest.mark.parametrize("spec", [TrainSpec(), LORA])
def test_a_checkpoint_with_the_scheduler_of_sd15_is_sampled_and_trained_with_ddim(
    spec: TrainSpec, tmp_path: Path
) -> None:
    pipe = tiny_sd15(size=8, width=8)
    betas: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    pipe.scheduler = PNDMScheduler(**betas, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False)
    pipe.save_pretrained(tmp_path / "base")
    policy = SD15(path=str(tmp_path / "base"))
    policy.load("cpu")
    policy.prepare(spec, True)
    scheduler = policy.adapter.pipe.scheduler
    assert type(scheduler).__name__ == "DDIMScheduler" and not scheduler.config.clip_sample
    torch.testing.assert_close(scheduler.alphas_cumprod, pipe.scheduler.alphas_cumprod)
    assert scheduler.final_alpha_cumprod == scheduler.alphas_cumprod[0] and scheduler.config.steps_offset == 1

    plan = policy.plan_type(num_steps=4, guidance_scale=2.0)
    rollout = policy.rollout(DRAWS, plan, torch.ones(4, dtype=torch.bool))
    assert rollout.mask.all()
    (chunk,) = policy.chunks(rollout, rollout.mask, 8)
    parameters = policy.trainable().values()
    optimizer = torch.optim.SGD(parameters, lr=1e-2)
    new = policy.replay(rollout, chunk).log_prob
    torch.testing.assert_close(new.detach(), chunk.take(rollout.log_prob), rtol=0, atol=1e-5)
    (-new.mean()).backward()
    optimizer.step()
    assert float((policy.replay(rollout, chunk).log_prob - new).detach().abs().max()) > 1e-6

    wanted = policy.generate(DRAWS, plan)[1].images[0]
    for to in ("diffusers", "peft") if spec.mode == "lora" else ("diffusers",):
        folder = policy.export(tmp_path / to, to, plan)
        made = run_readme(folder, DRAWS[1].seed, **{"the base model": str(tmp_path / "base")})
        assert np.abs(made.astype(int) - wanted).max() <= 1, to
        assert "DDIMScheduler" in (folder / "README.md").read_text()


def test_a_flow_scheduler_on_a_diffusion_model_is_refused(tmp_path: Path) -> None:
    pipe = tiny_sd15(size=8, width=8)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    pipe.save_pretrained(tmp_path)
    policy = SD15(path=str(tmp_path))
    policy.load("cpu")
    with pytest.raises(UserError, match="FlowMatchEulerDiscreteScheduler is not supported for diffusion"):
        policy.check_loaded(None, policy.sampling_type())


def test_a_model_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot load '.*nowhere' as a StableDiffusion3Pipeline"):
        SD3(path=str(tmp_path / "nowhere")).load("cpu")


def test_without_t5_its_half_of_the_prompt_is_zeros(tmp_path: Path) -> None:
    build_tiny_sd3(tmp_path, **SMALL)
    policy = SD3(path=str(tmp_path), dtype="bfloat16", max_sequence_length=PHRASE_TOKENS, t5=False)
    policy.load("cpu")
    assert policy.adapter.encoders == ("text_encoder", "text_encoder_2")
    assert not policy.adapter.encode_texts([TEXT])["prompt"][:, -PHRASE_TOKENS:].any()
    assert next(policy.adapter.vae.parameters()).dtype == torch.float32
    assert next(policy.adapter.network.parameters()).dtype == torch.bfloat16
