"""An rl step on a toy policy: views, branches, measurements, corrections, refills, and two ranks."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import pytest
import torch
from toy_policy import FakeGroup, Ones, Prompts, SharedMail, ToyPolicy, gradients, stage, work

from mmrl.advantage.care import GrpoCare
from mmrl.advantage.dcpo import DcpoAdvantage
from mmrl.advantage.group import DrAdvantage
from mmrl.advantage.majority import Majority
from mmrl.advantage.rac import Rac
from mmrl.advantage.vogue import Vogue
from mmrl.config.schema import RefillSection
from mmrl.curriculum.puzzlecraft import PuzzleCraft
from mmrl.errors import RunError, UserError
from mmrl.meter import Meter
from mmrl.objective.archer import Archer
from mmrl.objective.aspo import Aspo
from mmrl.objective.correction import Rejection, Tis
from mmrl.objective.dcpo import Dcpo
from mmrl.objective.entropy import Entropy, EntropySteps
from mmrl.objective.kl import KL
from mmrl.objective.objective import Objective
from mmrl.objective.sequence import Gspo
from mmrl.objective.surrogate import Clip
from mmrl.objective.views import Dvrp, Papo
from mmrl.reward import Graded
from mmrl.rollout import Prompt


def step(
    objective: Objective, number: int = 0, policy: ToyPolicy | None = None, **options: Any
) -> tuple[list[np.ndarray | None], dict[str, float], ToyPolicy]:
    """Gradients and metrics of step `number` (draws start at the first)."""
    own, meter = policy or ToyPolicy(), Meter()
    found = gradients(own, work(own, stage(objective, **options)).updates(number, meter))
    return found, meter.reduce(FakeGroup()), own


def plain() -> np.ndarray:
    (found,), _, _ = step(Objective(DrAdvantage()))
    assert found is not None and np.abs(found).max() > 1e-3
    return found


OFF: list[dict[str, Any]] = [
    {"terms": (Papo(coef=0, entropy=0.5, aug_grad="recompute"),)},
    {"terms": (Dvrp(coef=0),)},
    {"terms": (Dvrp(masked=0, perturbed=0),)},
    {"terms": (Entropy(coef=0),)},
    {"shaping": (Vogue(visual=0, token=0),)},
    {"shaping": (GrpoCare(weight=0),)},
    {"shaping": (Majority(weight=0),)},
    {"shaping": (PuzzleCraft(strength=0),)},
    {"shaping": (Rac(weight=0),)},
    {"select": EntropySteps(fraction=1.0)},
    {"correction": Tis(cap=1e9)},
]


@pytest.mark.parametrize("options", OFF)
def test_coefficient_zero_is_grpo(options: dict[str, Any]) -> None:
    policy = ToyPolicy(engine_gap=0.0 if "correction" in options else None)
    (found,), _, _ = step(Objective(DrAdvantage(), **options), policy=policy)
    assert found is not None
    np.testing.assert_allclose(found, plain(), rtol=1e-6, atol=1e-9)


ON: list[dict[str, Any]] = [
    {"terms": (Papo(coef=0.1),)},
    {"terms": (Papo(coef=0.1, divergence="full_kl"),)},
    {"terms": (Dvrp(masked=0.1, perturbed=0.1),)},
    {"terms": (Entropy(coef=0.1),)},
    {"shaping": (Vogue(start=0.0),)},
    {"shaping": (GrpoCare(),)},
    {"shaping": (Majority(),)},
    {"shaping": (PuzzleCraft(),)},
    {"shaping": (Rac(weight=0.5),)},
    {"select": EntropySteps(fraction=0.3)},
    {"correction": Tis(cap=1.1)},
]


@pytest.mark.parametrize("options", ON)
def test_each_method_changes_the_gradient(options: dict[str, Any]) -> None:
    policy = ToyPolicy(engine_gap=0.2 if "correction" in options else None)
    (found,), _, _ = step(Objective(DrAdvantage(), **options), policy=policy)
    assert found is not None and np.abs(found - plain()).max() > 1e-5


def test_the_perception_kl_sees_only_samples_with_a_picture() -> None:
    """The value is the mean over the steps of samples with media; a stage without any has no value and no gradient."""
    objective = Objective(DrAdvantage(), terms=(Papo(coef=0.1),))
    (_,), metrics, policy = step(objective)
    seen = [draw for draw in policy.drawn if draw.prompt.media]
    assert 0 < len(seen) < len(policy.drawn)
    rollout = policy.rollout(seen, None, torch.ones(5, dtype=torch.bool))
    chunk = next(policy.chunks(rollout, rollout.mask, 100))
    with torch.no_grad():
        a, b = policy.replay(rollout, chunk).log_prob, policy.replay(rollout, chunk, "masked").log_prob
    value = (torch.exp(b - a) - (b - a) - 1)[rollout.mask].mean()
    assert metrics["papo_kl"] == pytest.approx(float(value), rel=1e-4)
    (blind,), metrics, _ = step(objective, prompts=Prompts(pictures=False))
    (base,), _, _ = step(Objective(DrAdvantage()), prompts=Prompts(pictures=False))
    assert "papo_kl" not in metrics
    np.testing.assert_array_equal(blind, base)


def test_splitting_into_micro_batches_changes_nothing() -> None:
    terms = (Papo(coef=0.1, entropy=0.1), Entropy(coef=0.01))
    objective = Objective(DrAdvantage(), Gspo(), terms=terms, aggregate="seq_mean_token_mean")
    (one,), _, _ = step(objective, micro_batch=24)
    (many,), _, _ = step(objective, micro_batch=1)
    np.testing.assert_allclose(one, many, rtol=1e-5, atol=1e-8)


def test_only_what_asks_for_it_is_replayed_with_gradient() -> None:
    for grad, term in [(False, Papo(coef=0.1, entropy=0.1)), (True, Papo(coef=0.1, entropy=0.1, aug_grad="recompute"))]:
        _, _, policy = step(Objective(DrAdvantage(), terms=(term,)))
        assert {on for view, _, on in policy.replays if view == "masked"} == {grad}
    _, _, policy = step(Objective(DrAdvantage()))
    assert {view for view, _, _ in policy.replays} == {"original"}


def test_papo_anneals_over_the_stage() -> None:
    full, half = (
        step(Objective(DrAdvantage(), terms=(Papo(coef=0.4, anneal=on),)), number=5)[0][0] for on in (False, True)
    )
    base = step(Objective(DrAdvantage()), number=5)[0][0]
    assert full is not None and half is not None and base is not None
    np.testing.assert_allclose(half - base, (full - base) / 2, rtol=1e-4, atol=1e-7)


def test_dvrp_reports_both_divergences() -> None:
    _, metrics, _ = step(Objective(DrAdvantage(), terms=(Dvrp(entropy=0.1),)))
    assert metrics["dvrp_masked"] > metrics["dvrp_perturbed"] > 0
    assert metrics["dvrp_entropy"] > 0


# ---- vogue


def views_at(number: int, **options: Any) -> list[str]:
    _, _, policy = step(Objective(DrAdvantage(), shaping=(Vogue(**options),)), number=number)
    return [draw.view for draw in policy.drawn]


def test_the_noisy_branch_fades_over_the_stage() -> None:
    assert set(views_at(0)) == {"noisy"}
    some = views_at(5).count("noisy")
    assert some == 12 and views_at(5) == views_at(5)
    assert views_at(9).count("noisy") < 6
    assert set(views_at(3, start=0.0)) == {"original"}


def test_samples_of_the_noisy_branch_are_trained_with_the_original_picture() -> None:
    """Their log-probs are scored again, so the ratio starts at 1 (start-up parity passes)."""
    _, metrics, policy = step(Objective(DrAdvantage(), shaping=(Vogue(),)))
    assert metrics["ratio"] == pytest.approx(1, abs=1e-6) and metrics["ratio_deviation"] < 1e-5
    assert metrics["measured/uncertainty/noisy"] > 0
    seen = {(view, on) for view, _, on in policy.replays if view == "noisy"}
    assert seen == {("noisy", False)}


def test_a_bonus_needs_its_branch_to_be_drawn_noisy() -> None:
    raw = step(Objective(DrAdvantage(), shaping=(Vogue(start=0.0, token=0),)))[0][0]
    np.testing.assert_allclose(raw, plain())


# ---- answers, consistency, correction


def test_majority_reads_no_target_and_rewards_agreement() -> None:
    _, metrics, _ = step(Objective(DrAdvantage(), shaping=(Majority(),)))
    assert metrics["reward_shaped"] > metrics["reward"]


def test_without_answers_a_comparison_is_refused() -> None:
    class Silent(ToyPolicy):
        def rollout(self, *args: Any) -> Any:
            found = super().rollout(*args)
            for sample in found.samples:
                sample.meta.clear()
            return found

    with pytest.raises(UserError, match="meta\\['answer'\\]"):
        step(Objective(DrAdvantage(), shaping=(Majority(),)), policy=Silent())


def test_correction_without_an_engine_is_refused() -> None:
    with pytest.raises(RunError, match="log-probs of an inference engine"):
        step(Objective(DrAdvantage(), correction=Tis()))


def test_correction_multiplies_the_policy_loss_alone() -> None:
    base = plain()
    for gap, cap, factor in ((0.1, 9.0, np.exp(0.1)), (0.9, 2.0, 2.0), (-0.3, 2.0, np.exp(-0.3))):
        (found,), metrics, _ = step(Objective(DrAdvantage(), correction=Tis(cap=cap)), policy=ToyPolicy(gap))
        np.testing.assert_allclose(found, base * factor, rtol=1e-4, atol=1e-7)
        assert metrics["correction"] == pytest.approx(factor, rel=1e-5) and metrics["rejected"] == 0
    normal = Objective(DrAdvantage(), correction=Tis(normalize=True))
    np.testing.assert_allclose(step(normal, policy=ToyPolicy(0.4))[0][0], base, rtol=1e-4, atol=1e-7)
    term = Entropy(coef=0.3)
    reject = Objective(DrAdvantage(), terms=(term,), correction=Tis(reject=(Rejection(low=0.9, high=1.1),)))
    (found,), metrics, _ = step(reject, policy=ToyPolicy(0.4))
    (with_term,), _, _ = step(Objective(DrAdvantage(), terms=(term,)))
    assert metrics["rejected"] == 1
    np.testing.assert_allclose(found, with_term - base, rtol=1e-4, atol=1e-7)


# ---- what of a step is known to the loss, and over the steps of a stage


class Seeing(ToyPolicy):
    """Its update sees other log-probs than the rollout, so that ratios are clipped; entropies differ from step to step."""

    def replay(self, rollout: Any, chunk: Any, *arguments: Any, **options: Any) -> Any:
        out = super().replay(rollout, chunk, *arguments, **options)
        assert out.entropy is not None
        out.entropy = out.entropy + 0.1 * rollout.payload[chunk.rows]
        if torch.is_grad_enabled():
            out.log_prob = out.log_prob + 0.5 * (rollout.payload[chunk.rows] % 2 - 0.5)
        return out


@pytest.mark.parametrize("surrogate", [Archer(), Aspo(), Dcpo()])
def test_new_clip_ranges_change_the_gradient_and_splitting_does_not(surrogate: Any) -> None:
    def found(one: Any, size: int) -> np.ndarray:
        (gradient,), _, _ = step(Objective(DrAdvantage(), one), policy=Seeing(), micro_batch=size)
        assert gradient is not None
        return gradient

    np.testing.assert_allclose(found(surrogate, 1), found(surrogate, 24), rtol=1e-5, atol=1e-8)
    assert np.abs(found(surrogate, 24) - found(Clip(), 24)).max() > 1e-3


def test_archer_sees_the_entropy_of_each_step_where_it_was_drawn() -> None:
    """The toy's steps are equally uncertain, so none is above the quantile and the KL counts them all."""
    objective = Objective(DrAdvantage(), Archer(), terms=(KL(coef=0.1, on="certain"),))
    assert objective.measures(0) == ("entropy",)
    (one,), _, _ = step(objective)
    (other,), _, _ = step(Objective(DrAdvantage(), Clip(), terms=(KL(coef=0.1),)))
    np.testing.assert_array_equal(one, other)


def test_consistency_is_reported_when_it_is_due() -> None:
    objective = Objective(DrAdvantage(), shaping=(Rac(every=3),))
    for number in range(7):
        _, metrics, _ = step(objective, number=number)
        assert ("measured/rac" in metrics) == ("measured/rac/right" in metrics) == (number % 3 == 0)


def test_how_scores_came_about_is_counted() -> None:
    class Words(Ones):
        """Says which digit it read."""

        def score(self, samples: Any) -> list[float]:
            return [Graded(super(Words, self).score([one])[0], f"digit{(one.text or '?')[0]}") for one in samples]

    own, meter, policy = stage(Objective(DrAdvantage())), Meter(), ToyPolicy()
    own.rewards = {"ones": (Words(), 1.0)}
    gradients(policy, work(policy, own).updates(0, meter))
    counted = {k: v for k, v in meter.reduce(FakeGroup()).items() if k.startswith("reward/ones/how=")}
    assert sum(counted.values()) == 24 and counted["reward/ones/how=digit1"] > 0


def test_a_sample_on_which_two_rewards_fail_is_one_failure() -> None:
    class Half(Ones):
        """Fails on every second sample."""

        def score(self, samples: Any) -> list[float]:
            return [np.nan if row % 2 else 1.0 for row in range(len(samples))]

    own, meter, policy = stage(Objective(DrAdvantage())), Meter(), ToyPolicy()
    own.rewards = {"a": (Half(), 1.0), "b": (Half(), 1.0)}
    made = work(policy, own)
    gradients(policy, made.updates(0, meter))
    assert list(made.collector.tally.budget.steps) == [(12, 24)] and meter.reduce(FakeGroup())["failed"] == 12


def test_dcpo_remembers_prompts_over_steps_and_a_resume() -> None:
    """Prompts come back every third step; the memory is in the state, as JSON holds it."""

    def new() -> tuple[Any, ToyPolicy]:
        policy = ToyPolicy()
        return work(policy, stage(Objective(DcpoAdvantage()), prompts=Prompts(8))), policy

    whole, policy = new()
    straight = run_steps(whole, policy, range(6))
    first, policy = new()
    head = run_steps(first, policy, range(3))
    second, policy = new()
    second.load_state(json.loads(json.dumps(first.state())))
    tail = run_steps(second, policy, range(3, 6))
    forgetful, policy = new()
    forgetful.collector.draws.load_state(first.state()["sampler"])
    for got, want in zip(head + tail, straight, strict=True):
        np.testing.assert_array_equal(got, want)
    assert max(past.visits for past in whole.collector.history.of.values()) == 3
    other = run_steps(forgetful, policy, range(3, 6))
    assert any(not np.array_equal(a, b) for a, b in zip(other, tail, strict=True))


def updates_of_two_ranks(objective: Objective, prompts: Prompts, reward: Any) -> list[list[bool]]:
    """Whether each rank makes each update of a step."""
    mail, made = SharedMail(2), [[], []]  # type: ignore[var-annotated]

    def rank(number: int) -> None:
        policy, own = ToyPolicy(), stage(objective, prompts=prompts, updates_per_rollout=2, group_size=2)
        own.rewards = {"ones": (reward, 1.0)}
        found = gradients(policy, work(policy, own, FakeGroup(number, mail)).updates(0, Meter()))
        made[number] = [one is not None for one in found]

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return made


class Same(Ones):
    """Every sample is worth the same: no advantage anywhere."""

    def score(self, samples: Any) -> list[float]:
        return [1.0 for _ in samples]


class OnePicture(Prompts):
    """Only the first of 4 prompts has a picture: the samples of one rank alone are seen through a view."""

    def load(self) -> list[Prompt]:
        return [Prompt(str(i), "?", media=(1.0,) if i == 0 else ()) for i in range(4)]


def test_ranks_agree_on_an_update_that_only_a_term_moves() -> None:
    objective = Objective(DrAdvantage(), terms=(Papo(coef=0.1),))
    assert updates_of_two_ranks(objective, Prompts(pictures=False), Same()) == [[False, False]] * 2
    assert updates_of_two_ranks(objective, OnePicture(), Same()) == [[True, True]] * 2
    assert updates_of_two_ranks(Objective(DrAdvantage()), OnePicture(), Same()) == [[False, False]] * 2
    kl = Objective(DrAdvantage(), terms=(KL(coef=0.1),))
    assert updates_of_two_ranks(kl, Prompts(pictures=False), Same()) == [[True, True]] * 2


# ---- refill

REFILL = RefillSection(max_rounds=4)


def test_refill_draws_until_the_step_is_full() -> None:
    plain_work, filled = ToyPolicy(), ToyPolicy()
    with torch.no_grad():
        for policy in (plain_work, filled):
            policy.base += torch.tensor([0.0, 3.0, 0.0, 0.0])  # most groups are all right: no signal
    _, before, _ = step(Objective(DrAdvantage()), policy=plain_work)
    _, after, _ = step(Objective(DrAdvantage()), policy=filled, refill=REFILL)
    assert before["zero_signal_share"] > 0.2
    assert after["refill/rounds"] > 1 and after["refill/groups"] == 4
    assert after["advantage/kept"] == pytest.approx(24 / len(filled.drawn))


def test_an_exhausted_refill_trains_on_what_is_there() -> None:
    policy = ToyPolicy()
    with torch.no_grad():
        policy.base += torch.tensor([0.0, 30.0, 0.0, 0.0])
    found, metrics, _ = step(Objective(DrAdvantage()), policy=policy, refill=RefillSection(max_rounds=2))
    assert found == [None] and metrics["refill/rounds"] == 2 and metrics["refill/groups"] == 0


def test_a_full_first_round_is_the_plain_step() -> None:
    policy, other = ToyPolicy(), ToyPolicy()
    objective = Objective(DrAdvantage())
    index = next(i for i in range(20) if full(objective, i))
    a, b = work(policy, stage(objective)), work(other, stage(objective, refill=REFILL))
    for one in (a, b):
        one.collector.draws.index = index
    np.testing.assert_array_equal(
        gradients(policy, a.updates(0, Meter()))[0], gradients(other, b.updates(0, Meter()))[0]
    )


def full(objective: Objective, index: int) -> bool:
    policy, meter = ToyPolicy(), Meter()
    own = work(policy, stage(objective))
    own.collector.draws.index = index
    gradients(policy, own.updates(0, meter))
    return meter.values["zero_signal_share"] == 0


def test_the_mean_of_a_group_may_be_bounded_too() -> None:
    _, metrics, _ = step(Objective(DrAdvantage()), refill=RefillSection(max_rounds=3, low=0.3, high=0.7))
    assert metrics["refill/rounds"] >= 2


def run_steps(own: Any, policy: ToyPolicy, numbers: range) -> list[np.ndarray | None]:
    return [found for number in numbers for found in gradients(policy, own.updates(number, Meter()))]


def test_resuming_between_refilled_steps_changes_nothing() -> None:
    def new() -> tuple[Any, ToyPolicy]:
        policy = ToyPolicy()
        with torch.no_grad():
            policy.base += torch.tensor([0.0, 2.0, 0.0, 0.0])
        return work(policy, stage(Objective(DrAdvantage()), refill=REFILL, updates_per_rollout=2)), policy

    straight = run_steps(*new(), range(4))
    first, policy = new()
    head = run_steps(first, policy, range(2))
    state = first.state()
    assert state["sampler"]["index"] > 2
    second, policy = new()
    second.load_state(state)
    tail = run_steps(second, policy, range(2, 4))
    assert len(straight) == 8
    for got, want in zip(head + tail, straight, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "objective",
    [
        Objective(DrAdvantage(), terms=(Papo(coef=0.1, entropy=0.1),)),
        Objective(DrAdvantage(), Gspo(), (Vogue(start=0.6), PuzzleCraft()), aggregate="seq_mean_token_sum"),
        Objective(DrAdvantage(), shaping=(Majority(), GrpoCare()), select=EntropySteps(fraction=0.1)),
    ],
)
def test_two_ranks_are_one_with_a_refill(objective: Objective) -> None:
    options: dict[str, Any] = {"refill": REFILL, "prompts_per_step": 3, "group_size": 5, "updates_per_rollout": 3}
    (whole), alone, _ = step(objective, **options)
    mail = SharedMail(2)
    parts: list[Any] = [None, None]
    seen: list[dict[str, float]] = [{}, {}]

    def rank(number: int) -> None:
        policy, meter = ToyPolicy(), Meter()
        group = FakeGroup(number, mail)
        parts[number] = gradients(policy, work(policy, stage(objective, **options), group).updates(0, meter))
        seen[number] = meter.reduce(group)

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(whole) == 3 and seen[0] == seen[1]
    assert seen[0] == pytest.approx(alone, rel=1e-4, abs=1e-6)
    for one, left, right in zip(whole, *parts, strict=True):
        np.testing.assert_allclose(left + right, one, rtol=1e-4, atol=1e-6)
