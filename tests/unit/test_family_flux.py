"""FLUX.1 dev, schnell and Kontext on tiny pipelines of the published classes."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from family_contract import CAPTIONS, FamilyContract
from PIL import Image
from tiny_families.flux import tiny_flux

from mmrl.errors import UserError
from mmrl.generative.conditioning import Ask
from mmrl.generative.families.flux import Flux, FluxKontext
from mmrl.generative.packing import unpack_latents
from mmrl.generative.policy import DenoisingPolicy
from mmrl.rollout import Prompt

SOURCE = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)


class FluxContract(FamilyContract):
    policy_type = Flux
    plan: ClassVar[dict[str, Any]] = {"height": 32, "width": 48}
    options: ClassVar[dict[str, Any]] = {"max_sequence_length": 2}
    wrong: ClassVar[tuple[tuple[dict[str, Any], str], ...]] = (
        ({"height": 40}, r"multiples of 16, got \(40, 48\)"),
        ({"num_frames": 5}, "num_frames is 1, got 5"),
    )

    def unpacked(self, policy: DenoisingPolicy, latents: torch.Tensor) -> torch.Tensor:
        scale = policy.adapter.vae_scale
        return unpack_latents(latents, self.plan["height"] // scale, self.plan["width"] // scale)


class TestDev(FluxContract):
    def build(self) -> Any:
        return tiny_flux()

    def test_guidance_is_told_and_costs_nothing(self, policy: DenoisingPolicy) -> None:
        low, high = (self.planned(policy, guidance) for guidance in (1.0, 3.5))
        assert policy.passes_per_step(high) == 1 and not policy.guides(high)
        first, second = (policy.generate(self.draws(1, 1), plan)[0].images[0] for plan in (low, high))
        assert (first != second).any()


class TestSchnell(FluxContract):
    guidance = (1.0,)

    def build(self) -> Any:
        return tiny_flux(guidance=False)

    def test_there_is_no_guidance(self, policy: DenoisingPolicy) -> None:
        with pytest.raises(UserError, match=r"knows no guidance: guidance_scale must be 1, got 3\.5"):
            policy.check_loaded(None, self.planned(policy, 3.5))


class TestKontext(FluxContract):
    policy_type = FluxKontext
    media = (SOURCE,)
    options: ClassVar[dict[str, Any]] = {"max_sequence_length": 2, "resize": False}

    def build(self) -> Any:
        return tiny_flux("FluxKontextPipeline")

    def call(self, prompt: Prompt) -> dict[str, Any]:
        return {"prompt": prompt.text, "image": Image.fromarray(prompt.media[0]), "max_area": 32 * 48}

    def test_the_source_matters_and_sizes_may_differ(self, policy: DenoisingPolicy) -> None:
        plan = self.planned(policy, 1.0)
        sources = (SOURCE, SOURCE[::-1].copy(), SOURCE[:32, :32].copy())
        asks = [policy.ask(Prompt(str(k), CAPTIONS[0], media=(one,)), plan) for k, one in enumerate(sources)]
        x = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(0)).expand(3, -1, -1, -1)
        told = policy.conditioned(asks)
        together = policy.predict(x, torch.full((3,), 500.0), policy.rows(told, asks, plan), 1.0)
        assert not torch.allclose(together[0], together[1])
        for k, ask in enumerate(asks):
            own = policy.conditioned([ask])
            alone = policy.predict(x[:1], torch.full((1,), 500.0), policy.rows(own, [ask], plan), 1.0)
            torch.testing.assert_close(alone[0], together[k], rtol=1e-4, atol=1e-5)

    def test_pictures_go_to_the_nearest_trained_resolution(self, policy: DenoisingPolicy) -> None:
        policy.adapter.resize = True  # type: ignore[attr-defined]
        assert policy.adapter._source_size(Image.fromarray(SOURCE)) == (832, 1248)  # type: ignore[attr-defined]

    def test_one_picture_is_asked_for(self, policy: DenoisingPolicy) -> None:
        plan = self.planned(policy, 1.0)
        with pytest.raises(UserError, match="no picture"):
            policy.ask(Prompt("p", "x"), plan)
        two = Ask("x", policy.ask(Prompt("p", "x", media=(SOURCE, SOURCE)), plan).media)
        with pytest.raises(UserError, match="one picture per prompt, got 2"):
            policy.adapter.encode([two])
