"""Stable Diffusion XL on a tiny pipeline of the published classes. Its Euler scheduler is replaced by DDIM on the same betas."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from family_contract import CAPTIONS, FamilyContract
from tiny_families.sdxl import tiny_sdxl

from mmrl.generative.families.sdxl import SDXL
from mmrl.generative.policy import DenoisingPolicy
from mmrl.rollout import Prompt


class SDXLContract(FamilyContract):
    policy_type = SDXL
    plan: ClassVar[dict[str, Any]] = {"height": 16, "width": 24}
    wrong: ClassVar[tuple[tuple[dict[str, Any], str], ...]] = (({"height": 15}, r"multiples of 2, got \(15, 24\)"),)


class TestZeros(SDXLContract):
    def build(self) -> Any:
        return tiny_sdxl()

    def test_no_text_is_zeros_but_an_empty_caption_is_a_text(self, policy: DenoisingPolicy) -> None:
        plan = self.planned(policy, 3.0)
        asks = policy.needed([policy.ask(Prompt("p", CAPTIONS[0]), plan), policy.ask(Prompt("q", ""), plan)], plan)
        told = policy.conditioned(asks).tensors["prompt"]
        assert [bool(row.any()) for row in told] == [True, True, False]

    def test_the_network_is_told_the_size(self, policy: DenoisingPolicy) -> None:
        seen: list[torch.Tensor] = []
        policy.adapter.network.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["added_cond_kwargs"]["time_ids"]), with_kwargs=True
        )
        policy.generate(self.draws(1, 1), self.planned(policy, 1.0))
        assert seen[0].tolist() == [[16.0, 24.0, 0.0, 0.0, 16.0, 24.0]]


class TestEncoded(SDXLContract):
    def build(self) -> Any:
        return tiny_sdxl(zeros=False)
