"""HunyuanVideo, on tiny pipelines of the published classes."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from family_contract import CAPTIONS, FamilyContract
from tiny_families.hunyuan_video import TEXT_TOKENS, tiny_hunyuan_video

from mmrl.generative.families.hunyuan_video import HunyuanVideo
from mmrl.generative.policy import DenoisingPolicy


class HunyuanContract(FamilyContract):
    policy_type = HunyuanVideo
    plan: ClassVar[dict[str, Any]] = {"height": 32, "width": 32, "num_frames": 5}
    options: ClassVar[dict[str, Any]] = {"max_sequence_length": TEXT_TOKENS}
    wrong: ClassVar[tuple[tuple[dict[str, Any], str], ...]] = (
        ({"height": 40}, r"multiples of 16, got \(40, 32\)"),
        ({"num_frames": 6}, "1 more than a multiple of 4, got 6; nearest: 5"),
    )


class TestDistilled(HunyuanContract):
    def build(self) -> Any:
        return tiny_hunyuan_video()

    def test_defaults_are_those_of_the_model(self, policy: DenoisingPolicy) -> None:
        assert policy.adapter.size(policy.plan_type()) == (720, 1280, 129)
        sample = policy.generate(self.draws(1, 1), self.planned(policy, 1.0))[0]
        assert sample.video is not None and sample.video.shape == (5, 32, 32, 3) and sample.meta["fps"] == 24

    def test_guidance_is_told_a_thousandfold_and_costs_nothing(self, policy: DenoisingPolicy) -> None:
        seen: list[torch.Tensor] = []
        policy.adapter.network.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["guidance"]), with_kwargs=True
        )
        plan = self.planned(policy, 6.0)
        policy.generate(self.draws(1, 1), plan)
        assert policy.passes_per_step(plan) == 1 and len(seen) == 4 and seen[0].tolist() == [6000.0]

    def test_the_mask_covers_what_is_padded(self, policy: DenoisingPolicy) -> None:
        lengths = policy.adapter.encode_texts(list(CAPTIONS))["prompt_mask"].sum(1).tolist()
        assert lengths[0] < lengths[1] < TEXT_TOKENS


class TestWithoutGuidance(HunyuanContract):
    guidance = (1.0,)

    def build(self) -> Any:
        return tiny_hunyuan_video(guidance=False)

    def test_there_is_no_guidance(self, policy: DenoisingPolicy) -> None:
        assert policy.adapter.facts(self.planned(policy, 6.0), 2) == {}
