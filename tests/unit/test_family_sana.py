"""SANA, on a tiny pipeline of the published classes.

The published scheduler is DPM-Solver++ of second order: `solver: dpm2m` is compared with it as it is, Euler steps with its first
order on the same sigmas.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from family_contract import CAPTIONS, FamilyContract, every
from tiny_families.sana import tiny_sana

from mmrl.generative.conditioning import Ask
from mmrl.generative.families.sana import Sana
from mmrl.generative.policy import DenoisingPolicy


class TestSana(FamilyContract):
    policy_type = Sana
    plan: ClassVar[dict[str, Any]] = {"height": 32, "width": 64}
    options: ClassVar[dict[str, Any]] = {"max_sequence_length": 48}
    wrong = (
        ({"height": 40}, r"multiples of 32, got \(40, 64\)"),
        ({"num_frames": 5}, "draws pictures, so num_frames is 1, got 5"),
    )

    def build(self) -> Any:
        return tiny_sana()

    def plain(self, policy: DenoisingPolicy) -> Any:
        from diffusers import DPMSolverMultistepScheduler, SanaPipeline

        pipe = SanaPipeline(**policy.adapter.pipe.components)
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, solver_order=1)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def test_second_order_is_the_published_scheduler(self, policy: DenoisingPolicy) -> None:
        plan = self.planned(policy, 3.0, sampler={"kind": "ode"}, solver="dpm2m", num_steps=6)
        draw = self.draws(1, 1)[0]
        found = policy.rollout([draw], plan, every(plan)).payload.final
        arguments = {"num_inference_steps": 6, **policy.adapter.call_guidance(plan), **policy.adapter.call_options()}
        generator = torch.Generator("cpu").manual_seed(draw.seed)
        latents = policy.adapter.pipe(
            draw.prompt.text, **self.plan, **arguments, generator=generator, output_type="latent"
        )[0]
        torch.testing.assert_close(found, latents, rtol=0, atol=1e-4)

    def test_the_instruction_is_before_prompts_alone(self, policy: DenoisingPolicy) -> None:
        made = policy.adapter.encode([Ask(CAPTIONS[0]), Ask(CAPTIONS[0], bare=True)])
        assert made["prompt"].shape[:2] == made["prompt_mask"].shape == (2, 48)
        assert not torch.allclose(made["prompt"][0, 1:], made["prompt"][1, 1:], atol=1e-3)

    def test_without_a_caption_is_as_guidance_has_it(self, policy: DenoisingPolicy) -> None:
        plan = self.planned(policy, 3.0)
        prompt = self.draws(1, 1)[0].prompt
        assert policy.needed([policy.ask(prompt, plan)], plan)[1] == policy.ask(prompt, plan, "blank")

    def test_defaults_are_those_of_the_model(self, policy: DenoisingPolicy) -> None:
        assert policy.adapter.size(policy.plan_type()) == (32, 32, 1)
