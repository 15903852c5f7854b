"""Qwen-Image, on a tiny pipeline of the published classes."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from family_contract import FamilyContract
from tiny_families.qwen_image import tiny_qwen_image

from mmrl.generative.families.qwen_image import QwenImage
from mmrl.generative.policy import DenoisingPolicy

IDLE = tuple(f"transformer_blocks.1.{name}" for name in ("attn.add_q_proj", "attn.to_add_out", "txt_mlp"))
"""What the last block makes of the text, nobody reads."""


class QwenContract(FamilyContract):
    plan: ClassVar[dict[str, Any]] = {"height": 32, "width": 48}
    wrong = (
        ({"height": 40}, r"multiples of 16, got \(40, 48\); nearest: \(32, 48\)"),
        ({"num_frames": 5}, "draws pictures, so num_frames is 1, got 5"),
    )
    idle = IDLE

    def unpacked(self, policy: DenoisingPolicy, latents: torch.Tensor) -> torch.Tensor:
        return policy.adapter.pipe._unpack_latents(latents, 32, 48, 8)[:, :, 0]


class TestQwenImage(QwenContract):
    policy_type = QwenImage

    def build(self) -> Any:
        return tiny_qwen_image()

    def test_defaults_are_those_of_the_model(self, policy: DenoisingPolicy) -> None:
        assert policy.adapter.size(policy.plan_type()) == (1024, 1024, 1)
        assert policy.adapter.tokens(policy.adapter.size(policy.plan_type())) == 4096

    def test_a_negative_prompt_is_in_the_call(self, policy: DenoisingPolicy) -> None:
        plan = self.planned(policy, 3.0, negative_prompt="blurry")
        assert policy.adapter.call_guidance(plan) == {"true_cfg_scale": 3.0, "negative_prompt": "blurry"}

    def test_a_guided_token_is_as_long_as_the_positive_one(self, policy: DenoisingPolicy) -> None:
        adapter: Any = policy.adapter
        negative, positive = torch.randn(2, 2, 4, 4, 6)
        guided = adapter.combine(negative, positive, 3.0, torch.tensor([500.0, 500.0]), {})
        plain = negative + 3.0 * (positive - negative)
        for row, top, left in [(0, 0, 0), (1, 2, 4)]:
            token = (row, slice(None), slice(top, top + 2), slice(left, left + 2))
            torch.testing.assert_close(guided[token].norm(), positive[token].norm())
            torch.testing.assert_close(
                torch.cosine_similarity(guided[token].flatten(), plain[token].flatten(), 0), torch.tensor(1.0)
            )
