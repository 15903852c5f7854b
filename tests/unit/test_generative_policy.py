"""The denoising policies on tiny models: rollout, replay, guidance, reference, sampling as plain diffusers does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from mmrl.errors import UserError
from mmrl.generative.conditioning import Ask
from mmrl.generative.families.tiny import TinySD3, TinySD15
from mmrl.generative.policy import DenoisingPolicy
from mmrl.generative.train import TrainSpec
from mmrl.rollout import Draw, Prompt, Rollout, Sample

CAPTIONS = ("one red circle", "a blue square left of a green triangle", "three green squares")
SMALL: dict[str, Any] = {"layers": 2, "heads": 2, "head_dim": 16}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Two threads cost more than they bring at this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def policy_of(kind: str, spec: TrainSpec | None = None, reference: bool = False, **options: Any) -> DenoisingPolicy:
    policy: DenoisingPolicy = TinySD3(**{**SMALL, **options}) if kind == "sd3" else TinySD15(size=8, width=8, **options)
    policy.load("cpu")
    policy.prepare(spec or TrainSpec(), reference)
    return policy


def draws_of(groups: int = 3, members: int = 2) -> list[Draw]:
    return [
        Draw(Prompt(str(g), CAPTIONS[g % 3]), g, m, seed=1000 + 10 * g + m, group_seed=50 + g)
        for g in range(groups)
        for m in range(members)
    ]


def every(plan: Any) -> torch.Tensor:
    return torch.ones(plan.num_steps, dtype=torch.bool)


def worst_ratio(policy: DenoisingPolicy, rollout: Rollout, micro_batch: int = 5) -> float:
    worst = 0.0
    for chunk in policy.chunks(rollout, rollout.mask, micro_batch):
        new = policy.replay(rollout, chunk).log_prob.detach()
        worst = max(worst, float((torch.exp(new - chunk.take(rollout.log_prob)) - 1).abs().max()))
    return worst


def nudge(policy: DenoisingPolicy, size: float = 0.02) -> None:
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter += size * torch.randn(parameter.shape, generator=g)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize(
    ("kind", "sampler"), [("sd3", "flow_sde"), ("sd3", "dance_sde"), ("sd3", "cps"), ("sd15", "ddim")]
)
def test_the_first_ratio_is_one(kind: str, sampler: str, guidance: float) -> None:
    policy = policy_of(kind)
    plan = policy.plan_type(num_steps=4, sampler={"kind": sampler}, guidance_scale=guidance, micro_batch=4)
    rollout = policy.rollout(draws_of(), plan, every(plan))
    assert rollout.mask[:, :-1].all() and bool(rollout.mask[0, -1]) == (sampler != "cps")
    assert torch.equal(rollout.mask[0], policy.stochastic_steps(plan, every(plan)))
    assert worst_ratio(policy, rollout) < 1e-5
    nudge(policy)
    assert worst_ratio(policy, rollout) > 1e-4


@pytest.mark.parametrize("spec", [TrainSpec(), TrainSpec(mode="lora", rank=4, alpha=8)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_weights_keep_the_ratio_at_one(dtype: str, spec: TrainSpec) -> None:
    policy = policy_of("sd3", spec, dtype=dtype)
    plan = policy.plan_type(num_steps=4)
    rollout = policy.rollout(draws_of(), plan, every(plan))
    assert rollout.payload.latents.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in policy.trainable().values())
    assert worst_ratio(policy, rollout, micro_batch=6) < 1e-5
    chunk = next(policy.chunks(rollout, rollout.mask, 6))
    policy.replay(rollout, chunk).log_prob.sum().backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in policy.trainable().values())


@pytest.mark.parametrize("kind", ["sd3", "sd15"])
def test_a_sample_does_not_depend_on_batch_or_rank(kind: str) -> None:
    policy = policy_of(kind)
    plan = policy.plan_type(num_steps=4, start_noise="shared")
    draws = draws_of()
    whole = policy.rollout(draws, plan, every(plan))
    halves = [policy.rollout(part, plan, every(plan)) for part in (draws[:2], draws[2:])]
    single = policy.rollout(draws, plan.model_copy(update={"micro_batch": 1}), every(plan))
    for final, log_prob in (
        (torch.cat([h.payload.final for h in halves]), torch.cat([h.log_prob for h in halves])),
        (single.payload.final, single.log_prob),
    ):
        torch.testing.assert_close(final, whole.payload.final, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(log_prob, whole.log_prob, rtol=1e-4, atol=1e-5)


def latents_of(rollout: Rollout) -> torch.Tensor:
    """The kept latents of every sample, `(N, L, ...)`."""
    at = rollout.payload.at
    return torch.stack([rollout.payload.latents[row[row >= 0]] for row in at])


def test_start_noise_is_shared_inside_a_group_only_when_asked() -> None:
    policy = policy_of("sd3")
    for choice in ("shared", "separate"):
        plan = policy.plan_type(num_steps=2, start_noise=choice)
        start = latents_of(policy.rollout(draws_of(), plan, every(plan)))[:, 0]
        assert torch.equal(start[0], start[1]) == (choice == "shared")
        assert not torch.equal(start[0], start[2])


def test_a_group_shares_its_steps_before_the_first_noise() -> None:
    policy = policy_of("sd3")
    plan = policy.plan_type(num_steps=6, stochastic="selected", start_noise="shared", guidance_scale=2.0)
    steps = torch.tensor([False, False, True, False, True, False])
    draws = draws_of(groups=2, members=3)
    whole = policy.rollout(draws, plan, steps)
    assert whole.stats["nfe"] == pytest.approx(2 * (3 * 2 + 3 * 6) / 6)  # the first noise comes after step 2
    parts = [policy.rollout([draw], plan, steps) for draw in draws]
    assert [part.stats["nfe"] for part in parts] == [12.0] * 6
    torch.testing.assert_close(torch.cat([latents_of(part) for part in parts]), latents_of(whole), rtol=1e-4, atol=1e-5)
    assert len(whole.payload.latents) == 2 + 3 * 6  # x2 of both groups once; x3, x4, x5 of every sample
    torch.testing.assert_close(torch.cat([part.log_prob for part in parts]), whole.log_prob, rtol=1e-4, atol=1e-5)
    assert torch.equal(torch.cat([part.mask for part in parts]), whole.mask)
    assert worst_ratio(policy, whole) < 1e-5


def test_unselected_steps_follow_the_ode_and_are_not_kept() -> None:
    policy = policy_of("sd3")
    plan = policy.plan_type(num_steps=6, stochastic="selected")
    steps = torch.tensor([False, True, True, False, False, True])
    rollout = policy.rollout(draws_of(), plan, steps)
    assert torch.equal(rollout.mask, steps.expand(6, 6))
    assert (rollout.payload.at >= 0).tolist() == [[False, True, True, True, False, True, True]] * 6  # x1 x2 x3, x5 x6
    assert rollout.step_std is not None and torch.equal(rollout.step_std[0] > 0, steps)
    assert (rollout.log_prob[:, ~steps] == 0).all()
    assert worst_ratio(policy, rollout) < 1e-5
    with pytest.raises(UserError, match="step 0 is to be trained"):
        policy.chunks(rollout, torch.ones_like(rollout.mask), 4)


def test_chunks_cover_every_trained_pair_once_in_order_of_steps() -> None:
    policy = policy_of("sd3")
    plan = policy.plan_type(num_steps=3)
    rollout = policy.rollout(draws_of(), plan, every(plan))
    train = rollout.mask.clone()
    train[1, 0] = train[4, 2] = False
    chunks = list(policy.chunks(rollout, train, 5))
    pairs = [(r, s) for c in chunks for r, (s,) in zip(c.rows.tolist(), c.steps.tolist(), strict=True)]
    assert max(len(c.rows) for c in chunks) == 5
    assert pairs == sorted(train.nonzero().tolist() and map(tuple, train.nonzero().tolist()), key=lambda p: p[::-1])


def test_guidance_is_one_doubled_batch_whose_gradient_is_that_of_the_conditional_half() -> None:
    policy = policy_of("sd3")
    plan = policy.plan_type(num_steps=2, guidance_scale=4.0)
    asks = [Ask(text) for text in CAPTIONS]
    conditioning = policy.conditioned([*asks, Ask("", bare=True)])
    cond, blank = policy.rows(conditioning, asks, plan)
    x, t = torch.randn(3, 3, 24, 24), torch.tensor([900.0, 500.0, 100.0])
    parameters = list(policy.trainable().values())

    def gradient(output: torch.Tensor) -> torch.Tensor:
        direction = torch.linspace(-1, 1, output.numel()).reshape(output.shape)
        found = torch.autograd.grad((output * direction).sum(), parameters, allow_unused=True)
        return torch.cat([g.flatten() for g in found if g is not None])

    guided = policy.predict(x, t, (cond, blank), 4.0)
    with_text, without = (policy.predict(x, t, (c, None), 1.0) for c in (cond, blank))  # type: ignore[arg-type]
    torch.testing.assert_close(guided, without + 4.0 * (with_text - without), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(with_text, without, atol=1e-4)
    torch.testing.assert_close(gradient(guided), 4.0 * gradient(with_text), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("spec", [TrainSpec(), TrainSpec(mode="lora", rank=4, alpha=8)])
@pytest.mark.parametrize("kind", ["sd3", "sd15"])
def test_the_reference_is_the_policy_at_the_start(kind: str, spec: TrainSpec) -> None:
    policy = policy_of(kind, spec, reference=True)
    plan = policy.plan_type(num_steps=3)
    rollout = policy.rollout(draws_of(), plan, every(plan))
    chunk = next(policy.chunks(rollout, rollout.mask, 8))
    norms = ("s2", "g2", "v") if kind == "sd3" else ("s2", "v")
    reference = policy.replay(rollout, chunk, model="reference")
    now = policy.replay(rollout, chunk)
    assert all(float(policy.divergence(now, reference, norm).detach().abs().max()) < 1e-9 for norm in norms)
    nudge(policy)
    moved, again = policy.replay(rollout, chunk), policy.replay(rollout, chunk, model="reference")
    assert torch.equal(again.log_prob, reference.log_prob)
    kl = policy.divergence(moved, again, "s2")
    gap = ((moved.dist.mean - again.dist.mean) ** 2).flatten(1).mean(1) / (2 * moved.dist.std.flatten() ** 2)
    assert kl.shape == (8, 1) and float(kl.detach().min()) > 0
    torch.testing.assert_close(kl[:, 0], gap)
    kl.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in policy.trainable().values())
    assert all(parameter.requires_grad for parameter in policy.trainable().values())


def test_a_reference_that_was_not_kept_and_an_unknown_view_are_named() -> None:
    policy = policy_of("sd3")
    plan = policy.plan_type(num_steps=2)
    rollout = policy.rollout(draws_of(), plan, every(plan))
    chunk = next(policy.chunks(rollout, rollout.mask, 2))
    with pytest.raises(UserError, match="no reference was kept"):
        policy.replay(rollout, chunk, model="reference")
    with pytest.raises(UserError, match="has no view 'masked'; it has: original, blank"):
        policy.replay(rollout, chunk, view="masked")
    assert not torch.equal(policy.replay(rollout, chunk, view="blank").log_prob, policy.replay(rollout, chunk).log_prob)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["sd3", "sd15", "sd15_v"])
def test_generate_makes_the_pictures_of_the_plain_pipeline(kind: str, guidance: float) -> None:
    options = {"prediction_type": "v_prediction"} if kind == "sd15_v" else {}
    policy = policy_of(kind[:4].rstrip("_"), **options)
    plan = policy.plan_type(num_steps=5, guidance_scale=guidance, start_noise="shared")
    draws = draws_of()
    found = [sample.images[0] for sample in policy.generate(draws, plan)]
    assert not np.array_equal(found[0], found[1])
    latents = policy.rollout(
        draws, policy.plan_type(num_steps=5, guidance_scale=guidance, sampler={"kind": "ode"}), every(plan)
    )
    assert not latents.mask.any()
    for i, draw in enumerate(draws):
        plain = policy.adapter.pipe(
            draw.prompt.text,
            num_inference_steps=5,
            guidance_scale=guidance,
            generator=torch.Generator("cpu").manual_seed(draw.seed),
            output_type="pt",
            **policy.adapter.call_options(),
        ).images[0]
        ours = policy.adapter.vae.decode(latents.payload.final[i : i + 1]).sample[0] / 2 + 0.5
        torch.testing.assert_close(ours.clamp(0, 1), plain, rtol=0, atol=1e-4)
        assert np.abs(found[i].astype(int) - (plain.permute(1, 2, 0) * 255).round().numpy()).max() <= 1


def test_scaled_latents_are_decoded_as_the_plain_pipeline_does_and_encoded_back() -> None:
    policy = policy_of("sd3")
    policy.adapter.vae.register_to_config(scaling_factor=1.5305, shift_factor=0.0609)
    plan = policy.plan_type(num_steps=3)
    found = policy.generate(draws_of()[:1], plan)[0].images[0]
    made = policy.adapter.pipe(
        CAPTIONS[0],
        num_inference_steps=3,
        guidance_scale=1.0,
        generator=torch.Generator("cpu").manual_seed(1000),
        output_type="np",
        **policy.adapter.call_options(),
    ).images[0]
    assert np.abs(found.astype(int) - (made * 255).round()).max() <= 1
    latents = policy.adapter.encode_images([found])
    assert np.array_equal(policy.adapter.decode(latents)[0], found)
    assert float(latents.mean()) == pytest.approx((float(found.mean()) / 127.5 - 1 - 0.0609) * 1.5305, abs=1e-3)


@pytest.mark.parametrize("spec", [TrainSpec(caption_dropout=0.5), TrainSpec(loss="sample", noise="logit_normal")])
@pytest.mark.parametrize("kind", ["sd3", "sd15"])
def test_the_supervised_loss_of_an_example_is_its_own(kind: str, spec: TrainSpec) -> None:
    policy = policy_of(kind, spec)
    side = policy.adapter.size(policy.sampling_type())[0]
    rng = np.random.default_rng(0)
    examples = [
        Sample(draw.prompt, images=(rng.integers(0, 256, (side, side, 3), dtype=np.uint8),)) for draw in draws_of()
    ]
    seeds = list(range(6))
    whole = policy.supervised_loss(examples, seeds)
    parts = torch.cat([policy.supervised_loss(examples[i : i + 2], seeds[i : i + 2]) for i in (0, 2, 4)])
    assert whole.shape == (6,) and whole.requires_grad
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole, policy.supervised_loss(examples, seeds[::-1]))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_flow_matching_loss_against_a_loop(shift: float) -> None:
    policy = policy_of("sd3", TrainSpec(noise_shift=shift))
    image = np.full((24, 24, 3), 200, dtype=np.uint8)
    sample = Sample(Prompt("0", CAPTIONS[0]), images=(image,))
    found = float(policy.supervised_loss([sample], [7]).detach())
    g = torch.Generator().manual_seed(7)
    torch.rand(1, generator=g)  # caption dropout
    u, eps = float(torch.rand(1, generator=g)), torch.randn(1, 3, 24, 24, generator=g)
    sigma = shift * u / (1 + (shift - 1) * u)
    x0 = torch.full((1, 3, 24, 24), 200 / 127.5 - 1)
    cond = policy.adapter.encode_texts([CAPTIONS[0]])
    out = policy.adapter.predict((1 - sigma) * x0 + sigma * eps, torch.tensor([1000 * sigma]), cond)
    v = ((1 - sigma) * x0 + sigma * eps - out) / sigma
    assert sigma > 0.05 and found == pytest.approx(float(((v - (eps - x0)) ** 2).mean().detach()), rel=1e-3)


def test_trained_text_encoders_get_a_gradient_and_frozen_ones_run_once_per_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[list[Ask]] = []

    def counted(encode: Callable[[list[Ask]], Any]) -> Callable[[list[Ask]], Any]:
        return lambda asks: (calls.append(asks), encode(asks))[1]

    policy = policy_of("sd3")
    monkeypatch.setattr(policy.cache, "encode", counted(policy.adapter.encode))
    plan = policy.plan_type(num_steps=2)
    for _ in range(2):
        rollout = policy.rollout(draws_of(), plan, every(plan))
        worst_ratio(policy, rollout)
    assert sorted(ask.text for asks in calls for ask in asks) == sorted(CAPTIONS)

    policy.prepare(TrainSpec(parts=("transformer", "text_encoders")), reference=True)
    rollout = policy.rollout(draws_of(), plan, every(plan))
    assert rollout.payload.conditioning is None and worst_ratio(policy, rollout) < 1e-5
    chunk = next(policy.chunks(rollout, rollout.mask, 8))
    policy.replay(rollout, chunk).log_prob.sum().backward()
    for part in ("text_encoder.", "text_encoder_2.", "text_encoder_3.", "transformer."):
        grads = [p.grad for name, p in policy.trainable().items() if name.startswith(part)]
        assert grads and any(g is not None and g.any() for g in grads), part
    before = policy.replay(rollout, chunk, model="reference").log_prob
    nudge(policy)
    torch.testing.assert_close(policy.replay(rollout, chunk, model="reference").log_prob, before)
    assert not torch.allclose(policy.replay(rollout, chunk).log_prob, before)


def test_two_builds_from_one_seed_are_equal_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    a, b, c = (policy_of("sd3", TrainSpec(mode="lora", rank=2), seed=s) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    weights = [p.adapter.network.state_dict() for p in (a, b, c)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert any(not torch.equal(weights[0][k], weights[2][k]) for k in weights[0])


def test_a_policy_that_was_not_loaded_says_so() -> None:
    with pytest.raises(RuntimeError, match="load"):
        TinySD3().trainable()
