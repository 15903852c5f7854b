"""Wan: text to video, first frame to video, and the two experts of Wan 2.2, on tiny pipelines of the published classes.

The published scheduler is UniPC of second order. The plain pipeline is given its first order without the corrector, as the README of
an export says: those are the Euler steps of mmrl on the same sigmas.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from family_contract import CAPTIONS, LORA, FamilyContract, every
from PIL import Image
from tiny_families.wan import tiny_wan

from mmrl.errors import UserError
from mmrl.generative.conditioning import Ask
from mmrl.generative.families.wan import Wan, WanImage
from mmrl.generative.policy import DenoisingPolicy
from mmrl.generative.train import TrainSpec
from mmrl.rollout import Prompt, Sample

FIRST = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
WRONG: Any = (
    ({"height": 40}, r"multiples of 16, got \(40, 32\)"),
    ({"num_frames": 6}, "1 more than a multiple of 4, got 6; nearest: 5"),
)


class WanContract(FamilyContract):
    policy_type = Wan
    plan: ClassVar[dict[str, Any]] = {"height": 32, "width": 32, "num_frames": 5}
    options: ClassVar[dict[str, Any]] = {"max_sequence_length": 8}
    wrong = WRONG

    def plain(self, policy: DenoisingPolicy) -> Any:
        from diffusers import UniPCMultistepScheduler

        kind = type(policy.adapter.pipe)
        pipe = kind(**policy.adapter.pipe.components, boundary_ratio=policy.adapter.pipe.config.boundary_ratio)
        pipe.scheduler = UniPCMultistepScheduler.from_config(
            pipe.scheduler.config, solver_order=1, disable_corrector=list(range(4))
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe


class TestWan21(WanContract):
    def build(self) -> Any:
        return tiny_wan()

    def test_defaults_are_those_of_the_model(self, policy: DenoisingPolicy) -> None:
        assert policy.adapter.size(policy.plan_type()) == (480, 832, 81)
        sample = policy.generate(self.draws(1, 1), self.planned(policy, 1.0))[0]
        assert sample.video is not None and sample.video.shape == (5, 32, 32, 3) and sample.meta["fps"] == 16

    def test_an_example_of_wrong_length_is_named(self, policy: DenoisingPolicy) -> None:
        example = Sample(Prompt("0", CAPTIONS[0]), video=np.zeros((6, 32, 32, 3), np.uint8))
        with pytest.raises(UserError, match="1 more than a multiple of 4, got 6"):
            policy.supervised_loss([example], [1])

    def test_a_second_guidance_needs_a_second_expert_and_guidance(self, policy: DenoisingPolicy) -> None:
        with pytest.raises(UserError, match="guidance_scale_2 is 2, but this checkpoint has no second expert"):
            policy.check_loaded(None, self.planned(policy, 3.0, guidance_scale_2=2.0))
        with pytest.raises(ValueError, match="guidance_scale 1 means no guidance"):
            self.planned(policy, 1.0, guidance_scale_2=2.0)


class TestWan22(WanContract):
    guided: ClassVar[dict[str, Any]] = {"guidance_scale_2": 2.0}

    def build(self) -> Any:
        return tiny_wan(experts=2)

    def test_a_row_goes_through_the_expert_of_its_timestep(self, policy: DenoisingPolicy) -> None:
        asks = [Ask(CAPTIONS[0])] * 3
        told, _ = policy.rows(policy.conditioned(asks), asks, self.planned(policy, 1.0))
        x, t = torch.randn(3, 4, 2, 4, 4), torch.tensor([500.0, 800.0, 100.0])
        adapter: Any = policy.adapter
        with torch.no_grad():
            mixed = adapter.predict(x, t, told)
            high, low = (adapter._run(getattr(adapter.pipe, name), x, t, told) for name in adapter.networks)
        torch.testing.assert_close(mixed, torch.stack([low[0], high[1], low[2]]), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(high, low, atol=1e-3)

    def test_the_lora_is_on_both_experts_and_the_reference_is_without(self, folder: Path) -> None:
        policy = self.load(folder)
        parts = {name.split(".")[0] for name in policy.trainable()}
        assert parts == {"transformer", "transformer_2"}
        plan = self.planned(policy, 1.0)
        rollout = policy.rollout(self.draws(), plan, every(plan))
        with torch.no_grad():
            for parameter in policy.trainable().values():
                parameter += 0.2
        for chunk in policy.chunks(rollout, rollout.mask, 3):
            bare = policy.replay(rollout, chunk, model="reference").log_prob
            torch.testing.assert_close(bare, chunk.take(rollout.log_prob), rtol=1e-4, atol=1e-5)
        policy.prepare(LORA, False)
        assert policy.weights.changed == parts

    def test_one_expert_can_be_trained_alone(self, folder: Path) -> None:
        policy = self.load(folder, TrainSpec(parts=("transformer_2",)))
        assert {name.split(".")[0] for name in policy.trainable()} == {"transformer_2"}

    def test_each_expert_has_its_own_adapter_file(self, policy: DenoisingPolicy, tmp_path: Path) -> None:
        with torch.no_grad():
            for parameter in policy.trainable().values():
                parameter += 0.1
        plan = self.planned(policy, 3.0, sampler={"kind": "ode"})
        policy.export(tmp_path / "lora", "peft", plan)
        text = (tmp_path / "lora" / "README.md").read_text()
        assert "guidance_scale_2=2.0" in text and ").frames[0]" in text
        found = policy.rollout(self.draws(1, 1), plan, every(plan)).payload.final
        pipe = self.build()
        pipe.load_lora_weights(tmp_path / "lora")
        pipe.load_lora_weights(tmp_path / "lora" / "transformer_2", load_into_transformer_2=True)
        for name in policy.adapter.networks:
            setattr(policy.adapter.pipe, name, getattr(pipe, name))
        torch.testing.assert_close(
            policy.rollout(self.draws(1, 1), plan, every(plan)).payload.final, found, rtol=1e-4, atol=1e-4
        )


class FirstFrame(WanContract):
    policy_type = WanImage
    media = (FIRST,)

    def call(self, prompt: Prompt) -> dict[str, Any]:
        return {"prompt": prompt.text, "image": Image.fromarray(FIRST)}


class TestWan21Image(FirstFrame):
    def build(self) -> Any:
        return tiny_wan(image=True, clip=True)

    def test_one_picture_is_taken_and_seen(self, policy: DenoisingPolicy) -> None:
        draws = self.draws(1, 1)
        other = Prompt("0", CAPTIONS[0], media=(255 - FIRST,))
        plan = self.planned(policy, 1.0)
        made = [
            policy.generate([draw], plan)[0].video
            for draw in (draws[0], type(draws[0])(other, 0, 0, draws[0].seed, draws[0].group_seed))
        ]
        assert not np.array_equal(made[0], made[1])  # type: ignore[arg-type]
        two = type(draws[0])(Prompt("0", CAPTIONS[0], media=(FIRST, FIRST)), 0, 0, 1, 1)
        with pytest.raises(UserError, match="takes 1 picture, the first frame, but the prompt has 2"):
            policy.generate([two], plan)


class TestWan22Image(FirstFrame):
    guided: ClassVar[dict[str, Any]] = {"guidance_scale_2": 2.0}

    def build(self) -> Any:
        return tiny_wan(experts=2, image=True)
