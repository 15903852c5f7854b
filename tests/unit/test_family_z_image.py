"""Z-Image, on a tiny pipeline of the published classes."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from family_contract import CAPTIONS, FamilyContract
from tiny_families.z_image import tiny_z_image

from mmrl.generative.conditioning import Ask
from mmrl.generative.families.z_image import ZImage
from mmrl.generative.policy import DenoisingPolicy


class TestZImage(FamilyContract):
    policy_type = ZImage
    plan: ClassVar[dict[str, Any]] = {"height": 16, "width": 24}
    options: ClassVar[dict[str, Any]] = {"max_sequence_length": 64}
    wrong = (
        ({"height": 18}, r"multiples of 4, got \(18, 24\)"),
        ({"num_frames": 5}, "draws pictures, so num_frames is 1, got 5"),
    )

    def build(self) -> Any:
        return tiny_z_image()

    def test_defaults_are_those_of_the_model(self, policy: DenoisingPolicy) -> None:
        assert policy.adapter.size(policy.plan_type()) == (1024, 1024, 1)

    def test_texts_of_several_lengths_are_padded_behind(self, policy: DenoisingPolicy) -> None:
        made = policy.adapter.encode([Ask(text) for text in CAPTIONS])
        lengths = made["prompt_mask"].sum(1).tolist()
        assert lengths[0] < lengths[1] == made["prompt"].shape[1]
        assert not made["prompt"][0, lengths[0] :].any()
        torch.testing.assert_close(
            policy.adapter.encode([Ask(CAPTIONS[0])])["prompt"][0], made["prompt"][0, : lengths[0]]
        )

    def test_the_pipeline_counts_guidance_from_0(self, policy: DenoisingPolicy) -> None:
        told = [policy.adapter.call_guidance(self.planned(policy, scale)) for scale in (1.0, 4.0)]
        assert told == [{"guidance_scale": 0.0}, {"guidance_scale": 3.0}]
