"""The vision-language policy on the tiny Qwen3-VL: rollout, replay, views, reference, supervised loss, both engines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmrl.errors import RunError, UserError
from mmrl.rollout import Chunk, Draw, Prompt, Rollout, Sample, StepOutput
from mmrl.stages.work import readable
from mmrl.vlm.distribution import TokenDistributions, kl_divergence
from mmrl.vlm.models import TinyQwen3VL
from mmrl.vlm.plan import VlmPlan, VlmSampling
from mmrl.vlm.train import VlmTrainSpec
from mmrl.vlm.views import VIEWS

ENGINES = ("packed", "padded")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Two threads cost more than they bring at this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def policy_of(spec: VlmTrainSpec | None = None, reference: bool = False, **options: Any) -> TinyQwen3VL:
    policy = TinyQwen3VL(**options)
    policy.load("cpu")
    policy.prepare(spec or VlmTrainSpec(), reference)
    return policy


def picture(seed: int, height: int = 56, width: int = 56) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def prompts() -> list[Prompt]:
    """One image; text alone; two images in the text, one of them wide; a video."""
    video = np.stack([picture(seed) for seed in range(4)])
    return [
        Prompt("one", "How many red squares are there?", (picture(0),)),
        Prompt("text", "Answer yes or no."),
        Prompt("two", "<image> or <image>: which is red?", (picture(1), picture(2, 28, 84))),
        Prompt("video", "What comes next?", (video,), meta={"fps": 2}),
    ]


def draws_of(some: list[Prompt] | None = None, members: int = 3) -> list[Draw]:
    return [
        Draw(prompt, group, member, seed=1000 + 10 * group + member, group_seed=50 + group)
        for group, prompt in enumerate(some or prompts())
        for member in range(members)
    ]


def roll(policy: TinyQwen3VL, draws: list[Draw] | None = None, tokens: int = 10, **options: Any) -> Rollout:
    plan = VlmPlan(max_new_tokens=tokens, **options)
    return policy.rollout(draws or draws_of(), plan, torch.ones(tokens, dtype=torch.bool))


def replayed(policy: TinyQwen3VL, rollout: Rollout, micro_batch: int = 5, **options: Any) -> Tensor:
    """Log-probs `(N, S)` of a whole rollout."""
    found = torch.zeros_like(rollout.log_prob)
    for chunk in policy.chunks(rollout, rollout.mask, micro_batch):
        found[chunk.rows[:, None], chunk.steps] = policy.replay(rollout, chunk, **options).log_prob.detach()
    return found


def whole(rollout: Rollout) -> Chunk:
    rows, steps = rollout.mask.shape
    return Chunk(torch.arange(rows), torch.arange(steps).expand(rows, -1))


def nudge(policy: TinyQwen3VL, size: float = 0.02) -> None:
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter += size * torch.randn(parameter.shape, generator=g)


def naive_logits(policy: TinyQwen3VL, prompt: Prompt, answer: Tensor, view: str = "original", seed: int = 0) -> Tensor:
    """Logits (len, V) of one answer by one plain call of the model on prompt and answer together."""
    encoded = policy.encoder.encode(prompt, view, seed)
    ids = torch.cat([encoded.input_ids, answer])[None]
    kinds = torch.cat([encoded.kinds, torch.zeros_like(answer)])[None]
    policy.model.model.rope_deltas = None
    grids = {key: value for key, value in encoded.media.items() if key.endswith("grid_thw")}
    positions, _ = policy.model.model.get_rope_index(ids, mm_token_type_ids=kinds, **grids)
    # an image placeholder that was drawn as a token is a plain token: the model would look for an image
    embeds = policy.model.get_input_embeddings()(ids)
    core = policy.model.model
    deepstack, where = None, kinds > 0
    if encoded.media:
        found = [
            core.visual(encoded.media[pixels], grid_thw=encoded.media[grid], return_dict=True)
            for pixels, grid in (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw"))
            if pixels in encoded.media
        ]
        assert len(found) == 1
        embeds = embeds.masked_scatter(where[..., None], found[0].pooler_output)
        deepstack = found[0].deepstack_features
    out = core.language_model(
        inputs_embeds=embeds, position_ids=positions, deepstack_visual_embeds=deepstack,
        visual_pos_masks=where if encoded.media else None, use_cache=False,
    )  # fmt: skip
    return policy.model.lm_head(out[0])[0, len(encoded) - 1 : -1]


# ---- writing and scoring


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("scoring", ENGINES)
def test_the_first_ratio_is_one(scoring: str, temperature: float) -> None:
    policy = policy_of(scoring=scoring)
    assert policy.runner.name == scoring
    rollout = roll(policy, temperature=temperature)
    assert rollout.mask.any(1).all() and (rollout.log_prob[~rollout.mask] == 0).all()
    assert (replayed(policy, rollout) - rollout.log_prob).abs().max() < 2e-5
    nudge(policy)
    assert (replayed(policy, rollout) - rollout.log_prob).abs().max() > 1e-3


@pytest.mark.parametrize("scoring", ENGINES)
def test_scores_and_gradients_equal_one_answer_at_a_time(scoring: str) -> None:
    policy = policy_of(scoring=scoring)
    rollout = roll(policy, temperature=0.8)
    out = policy.replay(rollout, whole(rollout))
    weights = torch.randn(out.log_prob.shape, generator=torch.Generator().manual_seed(1)) * rollout.mask
    (out.log_prob * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in policy.trainable().items() if p.grad is not None}
    for parameter in policy.trainable().values():
        parameter.grad = None
    total = torch.zeros(())
    for row, draw in enumerate(rollout.draws):
        answer = rollout.payload.answers[row]
        log_p = torch.log_softmax(naive_logits(policy, draw.prompt, answer) / 0.8, -1)
        own = log_p[torch.arange(len(answer)), answer]
        torch.testing.assert_close(out.log_prob[row, : len(answer)], own, rtol=1e-5, atol=1e-5)
        assert out.entropy is not None
        entropy = -(log_p.exp() * log_p).sum(-1)
        torch.testing.assert_close(out.entropy[row, : len(answer)], entropy, rtol=1e-5, atol=1e-5)
        total = total + (own * weights[row, : len(answer)]).sum()
    total.backward()
    assert set(gradients) == {name for name, p in policy.trainable().items() if p.grad is not None}
    assert any("visual" in name for name in gradients)
    for name, parameter in policy.trainable().items():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("scoring", ENGINES)
def test_a_sample_does_not_depend_on_batch_or_rank(scoring: str) -> None:
    policy, draws = policy_of(scoring=scoring), draws_of()
    rollout = roll(policy, draws)
    texts = [sample.text for sample in rollout.samples]
    assert len(set(texts)) > len(texts) // 2
    single = roll(policy, draws, micro_batch=1)
    halves = [roll(policy, part) for part in (draws[:5], draws[5:])]
    assert [sample.text for sample in single.samples] == texts
    assert [sample.text for half in halves for sample in half.samples] == texts
    alone = roll(policy, [draws[7]])
    length = int(rollout.mask[7].sum())
    torch.testing.assert_close(alone.log_prob[0, :length], rollout.log_prob[7, :length], rtol=1e-4, atol=1e-5)


def test_both_engines_write_and_score_the_same() -> None:
    packed, padded = (policy_of(scoring=scoring) for scoring in ENGINES)
    one, other = roll(packed), roll(padded)
    assert [s.text for s in one.samples] == [s.text for s in other.samples]
    torch.testing.assert_close(one.log_prob, other.log_prob, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(replayed(packed, one), replayed(padded, one), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("scoring", ENGINES)
def test_greedy_answers_are_those_of_transformers(scoring: str) -> None:
    policy = policy_of(scoring=scoring)
    plan = VlmSampling(max_new_tokens=12, temperature=0)
    for prompt in prompts():
        encoded = policy.encoder.encode(prompt)
        tokens = policy.model.generate(
            input_ids=encoded.input_ids[None], attention_mask=torch.ones_like(encoded.input_ids)[None],
            mm_token_type_ids=encoded.kinds[None], **encoded.media, max_new_tokens=12, do_sample=False,
        )[0, len(encoded) :]  # fmt: skip
        expected = policy.encoder.decode(tokens)
        for sample in policy.generate(draws_of([prompt], 2), plan):
            assert sample.text == expected


@pytest.mark.parametrize("scoring", ENGINES)
def test_an_end_token_ends_an_answer_and_belongs_to_it(scoring: str) -> None:
    policy = policy_of(scoring=scoring)
    eos = policy.encoder.tokenizer.eos_token_id
    with torch.no_grad():  # the end becomes likely
        policy.model.lm_head.weight[eos] += 0.3 * policy.model.lm_head.weight.std()
        policy.model.model.language_model.norm.weight *= 2
    rollout = roll(policy, draws_of(members=8), tokens=40)
    lengths = rollout.mask.sum(1)
    ended = torch.tensor([sample.meta["finished"] for sample in rollout.samples])
    assert ended.any() and not ended.all()
    for row, answer in enumerate(rollout.payload.answers):
        assert len(answer) == lengths[row] == rollout.samples[row].meta["tokens"]
        assert (answer[-1] == eos) == ended[row] and not (answer[:-1] == eos).any()
        assert ended[row] or lengths[row] == 40
        assert rollout.mask[row, : lengths[row]].all() and not rollout.mask[row, lengths[row] :].any()
    assert rollout.stats["tokens"] == pytest.approx(float(lengths.float().mean()))
    assert rollout.stats["finished"] == pytest.approx(float(ended.float().mean()))
    assert (replayed(policy, rollout) - rollout.log_prob).abs().max() < 5e-5


def test_chunks_hold_whole_samples_and_stop_at_the_last_trained_step() -> None:
    policy = policy_of()
    rollout = roll(policy)
    train = rollout.mask.clone()
    train[:, 6:] = False
    train[4] = False
    chunks = list(policy.chunks(rollout, train, 4))
    assert torch.cat([chunk.rows for chunk in chunks]).tolist() == [row for row in range(12) if row != 4]
    for chunk in chunks:
        assert len(chunk.rows) <= 4 and chunk.steps.shape == (len(chunk.rows), 6)
        out = policy.replay(rollout, chunk)
        torch.testing.assert_close(out.log_prob.detach(), chunk.take(rollout.log_prob), rtol=1e-4, atol=2e-5)


def test_a_chunk_may_mix_groups_in_any_order() -> None:
    policy = policy_of()
    rollout = roll(policy)
    rows = torch.tensor([7, 0, 11, 1, 6])
    chunk = Chunk(rows, torch.arange(rollout.mask.shape[1]).expand(5, -1))
    out = policy.replay(rollout, chunk)
    torch.testing.assert_close(out.log_prob.detach(), chunk.take(rollout.log_prob), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("spec", [VlmTrainSpec(), VlmTrainSpec(mode="lora", rank=4, alpha=8)])
def test_bfloat16_weights_keep_the_ratio_near_one(spec: VlmTrainSpec) -> None:
    policy = policy_of(spec, dtype="bfloat16")
    assert all(parameter.dtype == torch.float32 for parameter in policy.trainable().values())
    rollout = roll(policy)
    assert (replayed(policy, rollout) - rollout.log_prob).abs().mean() < 0.02
    policy.replay(rollout, whole(rollout)).log_prob.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in policy.trainable().values())


# ---- views and exact divergence


def test_views_change_pictures_and_nothing_else() -> None:
    policy = policy_of()
    rollout = roll(policy)
    chunk = whole(rollout)
    looks = torch.tensor([draw.prompt.id != "text" for draw in rollout.draws])
    original = policy.replay(rollout, chunk)
    for view in VIEWS:
        seen = policy.replay(rollout, chunk, view)
        assert policy.has_view(rollout, chunk, view).tolist() == (looks | (view == "original")).tolist()
        change = (seen.log_prob - original.log_prob).abs().sum(1).detach()
        assert (change[~looks] < 1e-4).all()
        assert view == "original" or (change[looks] > 1e-2).all()
    first = rollout.payload.seen["masked"].encoded[0].media["pixel_values"]
    policy.replay(rollout, chunk, "masked")
    assert rollout.payload.seen["masked"].encoded[0].media["pixel_values"] is first
    again = roll(policy)
    policy.replay(again, chunk, "masked")
    assert torch.equal(again.payload.seen["masked"].encoded[0].media["pixel_values"], first)
    with pytest.raises(UserError, match="no view 'upside_down'; it has: original, masked"):
        policy.replay(rollout, chunk, "upside_down")


@pytest.mark.parametrize("scoring", ENGINES)
def test_exact_kl_is_that_of_the_whole_vocabulary(scoring: str) -> None:
    policy = policy_of(scoring=scoring)
    rollout = roll(policy, draws_of(members=1), tokens=4, temperature=1.3)
    chunk = whole(rollout)
    p, q = policy.replay(rollout, chunk), policy.replay(rollout, chunk, "noisy")
    found = policy.divergence(p, q, "full").detach()
    assert found.shape == p.log_prob.shape and (found[~rollout.mask] == 0).all()
    for row, draw in enumerate(rollout.draws):
        answer = rollout.payload.answers[row]
        with torch.no_grad():
            a = torch.log_softmax(naive_logits(policy, draw.prompt, answer).double() / 1.3, -1)
            noisy = naive_logits(policy, draw.prompt, answer, "noisy", draw.group_seed)
            b = torch.log_softmax(noisy.double() / 1.3, -1)
        for step in range(len(answer)):
            expected = sum(float(a[step, v].exp() * (a[step, v] - b[step, v])) for v in range(a.shape[1]))
            assert float(found[row, step]) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    with pytest.raises(UserError, match="unknown KL norm 'g2'"):
        policy.divergence(p, q, "g2")


def test_exact_kl_has_a_gradient_through_both_and_does_not_depend_on_the_chunk() -> None:
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 3, generator=g, dtype=torch.float64).requires_grad_()
    p_states = [torch.randn(n, 3, generator=g, dtype=torch.float64).requires_grad_() for n in (4, 0, 2)]
    q_states = [torch.randn(n, 3, generator=g, dtype=torch.float64).requires_grad_() for n in (4, 0, 2)]
    leaves = [weight, *(s for s in (*p_states, *q_states) if len(s))]

    def total(chunk: int) -> Tensor:
        p, q = TokenDistributions(p_states, weight, 0.7), TokenDistributions(q_states, weight, 0.7)
        return torch.cat(kl_divergence(p, q, chunk)).sum()

    naive = torch.zeros((), dtype=torch.float64)
    for a, b in zip(torch.cat(p_states), torch.cat(q_states), strict=True):
        log_p, log_q = (torch.log_softmax(x @ weight.T / 0.7, -1) for x in (a, b))
        naive = naive + (log_p.exp() * (log_p - log_q)).sum()
    expected = torch.autograd.grad(naive, leaves)
    for chunk in (1, 4, 100):
        assert float(total(chunk).detach()) == pytest.approx(float(naive.detach()), rel=1e-5)
        for found, wanted in zip(torch.autograd.grad(total(chunk), leaves), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


# ---- supervised loss


@pytest.mark.parametrize("scoring", ENGINES)
def test_supervised_loss_is_the_models_own(scoring: str) -> None:
    policy = policy_of(scoring=scoring)
    texts = ("<think>I see</think><answer>3</answer>", "no", "<answer>A</answer>", "It is red.")
    examples = [Sample(prompt, text=text) for prompt, text in zip(prompts(), texts, strict=True)]
    losses = policy.supervised_loss(examples, [0] * 4)
    assert losses.shape == (4,)
    for example, loss in zip(examples, losses, strict=True):
        encoded = policy.encoder.encode(example.prompt)
        answer = policy.encoder.answer(str(example.text), policy.encoder.tokenizer.eos_token_id)
        assert answer[-1] == policy.encoder.tokenizer.eos_token_id
        ids = torch.cat([encoded.input_ids, answer])
        labels = ids.clone()
        labels[: len(encoded)] = -100
        kinds = torch.cat([encoded.kinds, torch.zeros_like(answer)])
        policy.model.model.rope_deltas = None
        own = policy.model(
            input_ids=ids[None], attention_mask=torch.ones_like(ids)[None], mm_token_type_ids=kinds[None],
            labels=labels[None], **encoded.media,
        ).loss  # fmt: skip
        torch.testing.assert_close(loss, own, rtol=1e-5, atol=1e-5)
    losses.sum().backward()
    assert all(p.grad is not None for name, p in policy.trainable().items() if "visual" in name and "pos_embed" in name)
    with pytest.raises(UserError, match="example 'one' has no text"):
        policy.supervised_loss([Sample(prompts()[0])], [0])


def test_supervised_steps_teach_an_answer() -> None:
    policy = policy_of()
    example = Sample(prompts()[0], text="<answer>3</answer>")
    optimizer = torch.optim.AdamW(policy.trainable().values(), lr=2e-3)
    for _ in range(12):
        optimizer.zero_grad()
        policy.supervised_loss([example], [0]).sum().backward()
        optimizer.step()
    written = policy.generate(draws_of([example.prompt], 1), VlmSampling(max_new_tokens=10, temperature=0))[0]
    assert written.text == example.text and written.meta["finished"]


# ---- the seam


def test_what_is_known_before_the_weights() -> None:
    policy = TinyQwen3VL()
    plan = VlmPlan(max_new_tokens=24)
    allowed = torch.tensor([True, False, True])
    assert policy.plan_steps(plan) == 24 and torch.equal(policy.stochastic_steps(plan, allowed), allowed)
    assert policy.passes(plan, allowed, 24, 8, 2) == {"rollout": 24.0, "update": 2.0}
    assert policy.trains(VlmTrainSpec(freeze_vision=True)) == "all weights, without the vision tower"
    assert "rank 4" in policy.trains(VlmTrainSpec(mode="lora", rank=4))
    with pytest.raises(RuntimeError, match="load"):
        policy.device  # noqa: B018
    with pytest.raises(ValueError, match="float16 cannot be trained"):
        TinyQwen3VL(dtype="float16").check_train(VlmTrainSpec())


def test_the_objectives_views_are_checked_before_the_run() -> None:
    class Asks:
        needs = (("masked", "policy"), ("sideways", "policy"))

    with pytest.raises(ValueError, match="no view 'sideways'"):
        TinyQwen3VL().check_plan(VlmPlan(), Asks())


@pytest.mark.parametrize("name", ["top_p", "top_k", "min_p", "repetition_penalty"])
def test_bent_sampling_is_refused_with_its_reason(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} cannot be used in a rollout that trains: tokens would be drawn"):
        VlmPlan.model_validate({name: 0.9})
    with pytest.raises(ValueError, match="temperature"):
        VlmPlan(temperature=0)


def test_long_prompts_are_named_and_never_cut() -> None:
    policy = policy_of(max_prompt_tokens=30)
    some = [*prompts(), Prompt("long", "square " * 40)]
    lengths = {prompt.id: len(policy.encoder.encode(prompt)) for prompt in some}
    kept, left_out = policy.fits(some)
    assert [prompt.id for prompt in kept] == [id for id, length in lengths.items() if length <= 30]
    assert left_out == {id: length for id, length in lengths.items() if length > 30}
    assert "long" in left_out and "one" in [prompt.id for prompt in kept]
    assert policy_of().fits(some) == (some, {})
    with pytest.raises(UserError, match=r"example 'long' has a prompt of \d+ tokens, more than max_prompt_tokens 30"):
        policy.supervised_loss([Sample(some[-1], text="no")], [0])


def test_the_run_says_which_prompts_it_leaves_out() -> None:
    policy = policy_of(max_prompt_tokens=30)
    said: list[str] = []
    some = [*prompts(), *(Prompt(f"long{i}", "square " * 40) for i in range(6))]
    kept = readable(policy, some, said.append)
    assert kept == policy.fits(some)[0] and len(said) == 1
    left = len(some) - len(kept)
    assert f"left out: {left} of 10 prompts are too long for the policy (tokens): " in said[0]
    assert "long1 (" in said[0] and said[0].endswith(", ...")
    assert readable(policy_of(), some, said.append) == some and len(said) == 1
    with pytest.raises(RunError, match=r"6 of 6 prompts are too long .*; raise policy.max_prompt_tokens"):
        readable(policy, some[4:], said.append)


def test_a_draw_may_be_made_through_its_own_view() -> None:
    policy = policy_of()
    draws = [replace(draw, view="noisy" if draw.member == 0 else "original") for draw in draws_of()]
    rollout = roll(policy, draws)
    plain = roll(policy)
    chunk = whole(rollout)
    original, noisy = policy.replay(rollout, chunk), policy.replay(rollout, chunk, "noisy")
    for row, draw in enumerate(draws):
        own = noisy if draw.view == "noisy" else original
        length = int(rollout.mask[row].sum())
        torch.testing.assert_close(
            own.log_prob[row, :length].detach(), rollout.log_prob[row, :length], rtol=1e-4, atol=2e-5
        )
        if draw.view == "original" or draw.prompt.id == "text":
            assert rollout.samples[row].text == plain.samples[row].text
    shown = policy.generate(draws_of(), VlmSampling(max_new_tokens=10), "noisy")
    assert [s.text for s in shown][::3] == [s.text for s in rollout.samples][::3]
    assert [s.text for s in shown] != [s.text for s in plain.samples]


def test_options_that_cannot_work() -> None:
    with pytest.raises(ValueError, match=r"must hold {prompt} exactly once"):
        TinyQwen3VL(template="no place")
    with pytest.raises(ValueError, match="min_pixels 9000 is more than max_pixels 800"):
        TinyQwen3VL(min_pixels=9000, max_pixels=800)
    policy = policy_of()
    with pytest.raises(UserError, match="max_new_tokens 5000 leaves no room"):
        policy.check_loaded(None, VlmPlan(max_new_tokens=5000))


def test_step_output_fits_the_objective() -> None:
    """The shapes that the core combines: everything is (n, s) on one device."""
    policy = policy_of()
    rollout = roll(policy)
    chunk = next(policy.chunks(rollout, rollout.mask, 4))
    out = policy.replay(rollout, chunk)
    assert isinstance(out, StepOutput) and out.entropy is not None
    assert out.log_prob.shape == out.entropy.shape == chunk.steps.shape
    assert out.log_prob.dtype == out.entropy.dtype == torch.float32
    assert replace(out, log_prob=out.log_prob * 0).dist is out.dist
