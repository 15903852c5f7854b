"""LTX-Video, on tiny pipelines of the published classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from family_contract import FamilyContract
from tiny_families.ltx import tiny_ltx

from mmrl.errors import UserError
from mmrl.generative.families.ltx import LTX
from mmrl.generative.policy import DenoisingPolicy


class LTXContract(FamilyContract):
    policy_type = LTX
    plan: ClassVar[dict[str, Any]] = {"height": 64, "width": 64, "num_frames": 9}
    options: ClassVar[dict[str, Any]] = {"max_sequence_length": 8}
    wrong = (
        ({"height": 80}, r"multiples of 32, got \(80, 64\)"),
        ({"num_frames": 10}, "1 more than a multiple of 8, got 10; nearest: 9"),
    )

    def unpacked(self, policy: DenoisingPolicy, latents: torch.Tensor) -> torch.Tensor:
        return policy.adapter.pipe._unpack_latents(latents, 2, 2, 2)


class TestLTX(LTXContract):
    def build(self) -> Any:
        return tiny_ltx()

    def test_defaults_are_those_of_the_model(self, policy: DenoisingPolicy) -> None:
        assert policy.adapter.size(policy.plan_type()) == (512, 704, 161)
        sample = policy.generate(self.draws(1, 1), self.planned(policy, 1.0))[0]
        assert sample.video is not None and sample.video.shape == (9, 64, 64, 3) and sample.meta["fps"] == 25

    def test_the_network_is_told_the_frame_rate(self, policy: DenoisingPolicy) -> None:
        made = []
        for fps in (10, 25):
            plan = self.planned(policy, 1.0, fps=fps)
            draw = self.draws(1, 1)[0]
            made.append(policy.rollout([draw], plan, torch.zeros(4, dtype=torch.bool)).payload.final)
            arguments = {**self.plan, **policy.adapter.call_options(), **policy.adapter.call_guidance(plan)}
            generator = torch.Generator("cpu").manual_seed(draw.seed)
            latents = policy.adapter.pipe(
                draw.prompt.text, num_inference_steps=4, generator=generator, output_type="latent", **arguments
            )[0]
            assert arguments["frame_rate"] == fps
        assert not torch.allclose(made[0], made[1], atol=1e-4)
        plan = self.planned(policy, 1.0, fps=25, sampler={"kind": "ode"})
        found = policy.rollout([draw], plan, torch.ones(4, dtype=torch.bool)).payload.final
        torch.testing.assert_close(found, self.unpacked(policy, latents), rtol=0, atol=1e-4)

    def test_a_vae_that_draws_noise_is_refused(self, tmp_path: Path) -> None:
        tiny_ltx(decoder_inject_noise=(True, False, False, False, False)).save_pretrained(tmp_path)
        with pytest.raises(UserError, match="decoder_inject_noise"):
            self.load(tmp_path)


class TestVaeThatIsToldATimestep(LTXContract):
    options: ClassVar[dict[str, Any]] = {"max_sequence_length": 8, "decode_timestep": 0.05}

    def build(self) -> Any:
        return tiny_ltx(timestep_conditioning=True)

    def test_the_timestep_matters(self, policy: DenoisingPolicy) -> None:
        adapter: Any = policy.adapter
        latents = torch.randn(1, 8, 2, 2, 2)
        early = adapter.pixels(latents)
        adapter.decode_timestep = 0.8
        assert not torch.allclose(adapter.pixels(latents), early)
