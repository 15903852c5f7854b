"""FLUX.2 dev and klein, with and without pictures of the prompt, on tiny pipelines of the published classes."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from family_contract import CAPTIONS, FamilyContract, every
from PIL import Image
from tiny_families.flux2 import tiny_flux2, tiny_klein

from mmrl.errors import UserError
from mmrl.generative.families.flux2 import Flux2, Flux2Edit, Flux2Klein, Flux2KleinEdit
from mmrl.generative.policy import DenoisingPolicy
from mmrl.rollout import Prompt

PICTURES = tuple(np.random.default_rng(k).integers(0, 256, (64, 64 + 20 * k, 3), dtype=np.uint8) for k in range(2))


class Flux2Contract(FamilyContract):
    plan: ClassVar[dict[str, Any]] = {"height": 32, "width": 48}
    options: ClassVar[dict[str, Any]] = {"max_sequence_length": 48}
    wrong: ClassVar[tuple[tuple[dict[str, Any], str], ...]] = (
        ({"height": 40}, r"multiples of 16, got \(40, 48\)"),
        ({"num_frames": 5}, "num_frames is 1, got 5"),
    )


class DevContract(Flux2Contract):
    policy_type = Flux2

    def build(self) -> Any:
        return tiny_flux2()

    def unpacked(self, policy: DenoisingPolicy, latents: torch.Tensor) -> torch.Tensor:
        return latents.mT.reshape(-1, 16, 2, 3)


class KleinContract(Flux2Contract):
    policy_type = Flux2Klein

    def build(self) -> Any:
        return tiny_klein()

    def unpacked(self, policy: DenoisingPolicy, latents: torch.Tensor) -> torch.Tensor:
        return policy.adapter.from_vae(latents)  # this pipeline gives what its VAE takes


class EditContract(FamilyContract):
    media = PICTURES[1:]

    def call(self, prompt: Prompt) -> dict[str, Any]:
        return {"prompt": prompt.text, "image": [Image.fromarray(one) for one in prompt.media]}

    def test_pictures_matter_and_their_sizes_and_number_may_differ(self, policy: DenoisingPolicy) -> None:
        plan = self.planned(policy, 1.0)
        sources = (PICTURES[:1], PICTURES[1:], PICTURES, PICTURES[::-1])
        asks = [policy.ask(Prompt(str(k), CAPTIONS[0], media=some), plan) for k, some in enumerate(sources)]
        x = torch.randn(1, 16, 2, 3, generator=torch.Generator().manual_seed(0)).expand(4, -1, -1, -1)
        time = torch.full((4,), 500.0)
        together = policy.predict(x, time, policy.rows(policy.encode_fresh(asks), asks, plan), 1.0)
        for k, ask in enumerate(asks):
            alone = policy.predict(x[:1], time[:1], policy.rows(policy.conditioned([ask]), [ask], plan), 1.0)
            torch.testing.assert_close(alone[0], together[k], rtol=1e-4, atol=1e-5)
            assert not any(torch.allclose(together[k], other) for other in together[:k])

    def test_a_picture_that_does_not_fit_is_one_clear_line(self, policy: DenoisingPolicy) -> None:
        plan = self.planned(policy, 1.0)
        ask = policy.ask(Prompt("p", "x", media=(PICTURES[0][:32],)), plan)
        with pytest.raises(UserError, match="a source picture does not fit this model: Image too small: 64×32"):
            policy.conditioned([ask])


class TestDev(DevContract):
    def test_guidance_is_told_and_costs_nothing(self, policy: DenoisingPolicy) -> None:
        low, high = (self.planned(policy, guidance) for guidance in (1.0, 4.0))
        assert policy.passes_per_step(high) == 1 and not policy.guides(high)
        first, second = (policy.rollout(self.draws(1, 1), plan, every(plan)).payload.final for plan in (low, high))
        assert not torch.allclose(first, second)


class TestDevEdit(EditContract, DevContract):
    policy_type = Flux2Edit


class TestKlein(KleinContract):
    def test_guidance_moves_away_from_the_empty_prompt_only(self, policy: DenoisingPolicy) -> None:
        with pytest.raises(UserError, match="leave negative_prompt out"):
            policy.generate(self.draws(1, 1), self.planned(policy, 3.0, negative_prompt="dull"))


class TestKleinEdit(EditContract, KleinContract):
    policy_type = Flux2KleinEdit


class TestKleinDistilled(KleinContract):
    guidance = (1.0,)

    def build(self) -> Any:
        return tiny_klein(distilled=True)

    def test_it_takes_no_guidance(self, policy: DenoisingPolicy) -> None:
        with pytest.raises(UserError, match=r"guidance_scale must be 1, got 3\.0"):
            policy.check_loaded(None, self.planned(policy, 3.0))
