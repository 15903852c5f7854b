"""What every model family must do, on a tiny pipeline of the published classes. A test module says `class TestX(FamilyContract)`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from mmrl.errors import UserError
from mmrl.generative.policy import DenoisingPolicy
from mmrl.generative.train import TrainSpec
from mmrl.rollout import Draw, Prompt, Rollout, Sample

CAPTIONS = ("one red circle", "a blue square left of a green triangle")
LORA = TrainSpec(mode="lora", rank=2, alpha=4)


def every(plan: Any) -> torch.Tensor:
    return torch.ones(plan.num_steps, dtype=torch.bool)


def worst_ratio(policy: DenoisingPolicy, rollout: Rollout, micro_batch: int = 3) -> float:
    """max |ratio - 1|; three rows of a chunk do not divide four samples, so chunks span steps."""
    worst = 0.0
    for chunk in policy.chunks(rollout, rollout.mask, micro_batch):
        new = policy.replay(rollout, chunk).log_prob.detach()
        worst = max(worst, float((torch.exp(new - chunk.take(rollout.log_prob)) - 1).abs().max()))
    return worst


class FamilyContract:
    policy_type: ClassVar[type[DenoisingPolicy]]
    plan: ClassVar[dict[str, Any]]
    """Size of what is made (height, width, num_frames)."""
    options: ClassVar[dict[str, Any]] = {}
    """Of the policy, beside path and dtype."""
    guidance: ClassVar[tuple[float, ...]] = (1.0, 3.0)
    guided: ClassVar[dict[str, Any]] = {}
    """More of the plan, and of the pipeline's call, where guidance is above 1."""
    media: ClassVar[tuple[Any, ...]] = ()
    wrong: ClassVar[tuple[tuple[dict[str, Any], str], ...]] = ()
    """Changes of the plan that the model cannot make, and the message."""

    idle: ClassVar[tuple[str, ...]] = ()
    """In the names of LoRA weights that no gradient reaches, the network throwing away what they make."""

    def build(self) -> Any:
        """The tiny pipeline."""
        raise NotImplementedError

    def plain(self, policy: DenoisingPolicy) -> Any:
        """The pipeline to compare with. Override to give it a first-order scheduler."""
        return policy.adapter.pipe

    def call(self, prompt: Prompt) -> dict[str, Any]:
        """What the pipeline is told beside the plan."""
        return {"prompt": prompt.text}

    def unpacked(self, policy: DenoisingPolicy, latents: torch.Tensor) -> torch.Tensor:
        """The pipeline's latents in the layout of mmrl. Override where it packs them."""
        return latents

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp(type(self).__name__)
        self.build().save_pretrained(path, safe_serialization=True)
        return path

    @pytest.fixture(autouse=True)
    def _one_thread(self) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)

    @pytest.fixture
    def policy(self, folder: Path) -> DenoisingPolicy:
        return self.load(folder)

    def load(self, folder: Path, spec: TrainSpec = LORA, dtype: str = "float32") -> DenoisingPolicy:
        policy: Any = self.policy_type
        policy = policy(path=str(folder), dtype=dtype, **self.options)
        policy.load("cpu")
        policy.prepare(spec, False)
        return policy

    def draws(self, groups: int = 2, members: int = 2) -> list[Draw]:
        prompts = [Prompt(str(g), CAPTIONS[g % 2], media=self.media) for g in range(groups)]
        return [
            Draw(prompt, g, m, seed=100 + 10 * g + m, group_seed=50 + g)
            for g, prompt in enumerate(prompts)
            for m in range(members)
        ]

    def planned(self, policy: DenoisingPolicy, guidance: float, **more: Any) -> Any:
        guided = self.guided if guidance > 1 else {}
        return policy.plan_type(**({"num_steps": 4, "guidance_scale": guidance} | self.plan | guided | more))

    def test_generate_is_the_pipelines_own_call(self, policy: DenoisingPolicy) -> None:
        for guidance in self.guidance:
            plan = self.planned(policy, guidance, sampler={"kind": "ode"})
            draws = self.draws(2, 1)
            found = policy.rollout(draws, plan, every(plan)).payload.final
            made = policy.generate(draws, plan)
            pipe = self.plain(policy)
            for i, draw in enumerate(draws):
                arguments = {
                    "num_inference_steps": 4,
                    **policy.adapter.call_guidance(plan),
                    **self.plan,
                    **(self.guided if guidance > 1 else {}),
                    **self.call(draw.prompt),
                    **policy.adapter.call_options(),
                }
                latents, pixels = (
                    pipe(**arguments, generator=torch.Generator("cpu").manual_seed(draw.seed), output_type=kind)[0]
                    for kind in ("latent", "pt")
                )
                latents = self.unpacked(policy, latents)
                torch.testing.assert_close(found[i : i + 1], latents, rtol=0, atol=1e-4)
                ours = policy.adapter.pixels(found[i : i + 1])
                if policy.adapter.makes == "video":
                    ours = ours.movedim(2, 1)
                torch.testing.assert_close(ours, pixels, rtol=0, atol=1e-4)
                one = made[i].video if policy.adapter.makes == "video" else made[i].images[0]
                assert one is not None and one.dtype == np.uint8
                whole = (pixels[0].movedim(-3, -1) * 255).round().numpy()
                assert one.shape == whole.shape and np.abs(one.astype(int) - whole).max() <= 1

    def test_the_first_ratio_is_one_and_moves_with_the_weights(self, folder: Path) -> None:
        for guidance in self.guidance:
            policy = self.load(folder)
            plan = self.planned(policy, guidance)
            rollout = policy.rollout(self.draws(), plan, every(plan))
            assert rollout.mask.any() and worst_ratio(policy, rollout) < 1e-5
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in policy.trainable().values():
                    parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
            assert worst_ratio(policy, rollout) > 1e-5

    def test_a_prompt_alone_is_a_prompt_beside_a_longer_one(self, policy: DenoisingPolicy) -> None:
        plan = self.planned(policy, self.guidance[-1])
        draws = self.draws(2, 1)
        both = policy.rollout(draws, plan, every(plan)).payload.final
        alone = torch.cat([policy.rollout([draw], plan, every(plan)).payload.final for draw in draws])
        assert not torch.allclose(both[0], both[1])
        torch.testing.assert_close(alone, both, rtol=1e-4, atol=1e-5)

    def test_two_steps_train_the_lora(self, policy: DenoisingPolicy) -> None:
        plan = self.planned(policy, self.guidance[-1])
        start = {name: value.detach().clone() for name, value in policy.trainable().items()}
        optimizer = torch.optim.AdamW(policy.trainable().values(), lr=1e-2, weight_decay=0.0)
        for _ in range(2):
            rollout = policy.rollout(self.draws(), plan, every(plan))
            advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
            for chunk in policy.chunks(rollout, rollout.mask, 3):
                ratio = torch.exp(policy.replay(rollout, chunk).log_prob - chunk.take(rollout.log_prob))
                (-(ratio * advantage[chunk.rows][:, None]).sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
        moved = {name for name, value in policy.trainable().items() if not torch.equal(value, start[name])}
        expected = {name for name in start if not any(part in name for part in self.idle)}
        assert moved == expected, sorted(expected ^ moved)[:3]

    @pytest.mark.parametrize("spec", [LORA, TrainSpec()], ids=["lora", "full"])
    def test_bfloat16_starts_at_its_reference_and_has_a_gradient(self, folder: Path, spec: TrainSpec) -> None:
        policy = self.load(folder, spec, "bfloat16")
        policy.prepare(spec, True)
        plan = self.planned(policy, self.guidance[-1], num_steps=2)
        rollout = policy.rollout(self.draws(1, 2), plan, every(plan))
        chunk = next(iter(policy.chunks(rollout, rollout.mask, 2)))
        log_prob = policy.replay(rollout, chunk).log_prob
        torch.testing.assert_close(log_prob.detach(), chunk.take(rollout.log_prob), rtol=0, atol=0.05)
        assert torch.equal(policy.replay(rollout, chunk, model="reference").log_prob, log_prob.detach())
        log_prob.sum().backward()
        gradients = [p.grad for p in policy.trainable().values() if p.grad is not None]
        assert any(bool(g.any()) for g in gradients) and all(bool(g.isfinite().all()) for g in gradients)

    def test_a_lora_target_that_matches_nothing_is_named(self, folder: Path) -> None:
        with pytest.raises(UserError, match=r"LoRA target 'attn\.nowhere' matches no layer"):
            self.load(folder, LORA.model_copy(update={"targets": ("attn.nowhere",)}))

    def example(self, policy: DenoisingPolicy) -> Sample:
        made = policy.generate(self.draws(1, 1), self.planned(policy, 1.0))[0]
        return Sample(made.prompt, images=made.images, video=made.video)

    def test_supervision_has_a_gradient(self, policy: DenoisingPolicy) -> None:
        loss = policy.supervised_loss([self.example(policy)] * 2, [1, 2])
        assert loss.shape == (2,) and bool(loss.isfinite().all()) and loss[0] != loss[1]
        loss.sum().backward()
        assert any(p.grad is not None and p.grad.any() for p in policy.trainable().values())

    def test_a_saved_pipeline_draws_the_same(self, policy: DenoisingPolicy, tmp_path: Path) -> None:
        with torch.no_grad():
            for parameter in policy.trainable().values():
                parameter += 0.1
        plan = self.planned(policy, self.guidance[-1], sampler={"kind": "ode"})
        before = policy.rollout(self.draws(), plan, every(plan)).payload.final
        policy.export(tmp_path / "whole", "diffusers", plan)
        policy.export(tmp_path / "lora", "peft", plan)
        again = self.load(tmp_path / "whole")
        torch.testing.assert_close(
            again.rollout(self.draws(), plan, every(plan)).payload.final, before, rtol=1e-4, atol=1e-4
        )
        code = (tmp_path / "whole" / "README.md").read_text().split("```python")[1].split("```")[0]
        draw = Draw(Prompt("p", "a prompt", media=self.media), 0, 0, seed=3, group_seed=0)
        space: dict[str, Any] = {"seed": 3, "picture": self.call(draw.prompt).get("image")}
        exec(
            code.replace("this folder", str(tmp_path / "whole")).replace(
                "    generator=", '    output_type="pt", generator='
            ),
            space,
        )
        made = again.rollout([draw], plan, every(plan)).payload.final
        pixels = again.adapter.pixels(made)[0]
        pixels = pixels.movedim(0, 1) if policy.adapter.makes == "video" else pixels
        torch.testing.assert_close(pixels, space[policy.adapter.makes], rtol=0, atol=1e-4)

    def test_what_the_model_cannot_make_is_one_clear_line(self, policy: DenoisingPolicy) -> None:
        for change, message in self.wrong:
            with pytest.raises(UserError, match=message) as error:
                plan = self.planned(policy, 1.0, **change)
                policy.rollout(self.draws(1, 1), plan, every(plan))
            assert "\n" not in str(error.value)
        if self.media:
            with pytest.raises(UserError, match="has no picture"):
                draw = Draw(Prompt("bare", CAPTIONS[0]), 0, 0, 1, 1)
                policy.generate([draw], self.planned(policy, 1.0))
