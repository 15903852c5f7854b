"""CogVideoX, on tiny pipelines of the published classes; the pipeline that is compared with has a CogVideoXDDIMScheduler."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from family_contract import FamilyContract, every
from tiny_families.cogvideox import tiny_cogvideox

from mmrl.generative.families.cogvideox import CogVideoX
from mmrl.generative.policy import DenoisingPolicy


class CogVideoXContract(FamilyContract):
    policy_type = CogVideoX
    plan: ClassVar[dict[str, Any]] = {"height": 32, "width": 32, "num_frames": 9}
    wrong: ClassVar[tuple[tuple[dict[str, Any], str], ...]] = (
        ({"height": 40}, r"multiples of 16( up to 32)?, got \(40, 32\)"),
        ({"num_frames": 13}, "1 more than a multiple of 8, got 13"),
    )


class TestTwoBillion(CogVideoXContract):
    def build(self) -> Any:
        return tiny_cogvideox("2b")


class TestFiveBillion(CogVideoXContract):
    """Published with the other scheduler."""

    def build(self) -> Any:
        return tiny_cogvideox("5b", "CogVideoXDPMScheduler")

    def test_defaults_are_those_of_the_model(self, policy: DenoisingPolicy) -> None:
        assert policy.adapter.size(policy.plan_type()) == (32, 32, 9)
        sample = policy.generate(self.draws(1, 1), self.planned(policy, 1.0))[0]
        assert sample.video is not None and sample.video.shape == (9, 32, 32, 3) and sample.meta["fps"] == 8

    def test_the_first_step_starts_from_pure_noise(self, policy: DenoisingPolicy) -> None:
        schedule = policy.schedule(self.planned(policy, 1.0))
        assert schedule.timesteps.tolist() == [999, 749, 499, 249]
        assert float(schedule.alpha_bar[0]) == 0 and float(schedule.alpha_bar_next[-1]) == 1


class TestOneFive(CogVideoXContract):
    wrong = (*CogVideoXContract.wrong, ({"height": 48}, r"multiples of 16 up to 32, got \(48, 32\)"))

    def build(self) -> Any:
        return tiny_cogvideox("1.5")

    def test_defaults_are_those_of_the_model(self, policy: DenoisingPolicy) -> None:
        adapter: Any = policy.adapter
        assert (*adapter.default_sides, adapter.default_frames, adapter.default_fps) == (768, 1360, 81, 16)

    def test_the_frame_that_fills_up_is_a_copy_and_is_not_decoded(self, policy: DenoisingPolicy) -> None:
        plan = self.planned(policy, 1.0)
        final = policy.rollout(self.draws(1, 1), plan, every(plan)).payload.final
        assert final.shape == (1, 4, 4, 4, 4)
        other = final.clone()
        other[:, 0] += 1
        assert torch.equal(policy.adapter.pixels(final), policy.adapter.pixels(other))
        z = torch.randn(2, 4, 3, 4, 4)
        latents = policy.adapter.from_vae(z)
        assert torch.equal(latents[:, 0], latents[:, 1])
        torch.testing.assert_close(policy.adapter.to_vae(latents), z)


def test_patches_of_three_frames_are_refused(tmp_path: Any) -> None:
    from mmrl.errors import UserError

    pipe = tiny_cogvideox("1.5")
    pipe.transformer.register_to_config(patch_size_t=3)
    with pytest.raises(UserError, match="patches of 3 latent frames"):
        CogVideoX.adapter_type(pipe, torch.float32, torch.device("cpu"))
