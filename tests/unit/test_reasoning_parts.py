"""Names, bounds and refusals of the parts for reasoners, and edge cases that a reader can check by eye."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mmrl.advantage.care import GrpoCare, consistency_bonus
from mmrl.advantage.group import DrAdvantage, GroupAdvantage
from mmrl.advantage.length_gate import GrpoLambda, length_penalty
from mmrl.advantage.majority import Majority, majority
from mmrl.advantage.negative import Ngrpo, SignAdvantage
from mmrl.advantage.noisy import NoisyVerifier
from mmrl.advantage.types import Scored, Shaping
from mmrl.advantage.vogue import Vogue
from mmrl.components import build
from mmrl.config.dump import dump
from mmrl.config.json_schema import json_schema
from mmrl.config.resolve import load
from mmrl.curriculum.puzzlecraft import PuzzleCraft
from mmrl.curriculum.refill import admitted, useful
from mmrl.errors import RunError, UserError
from mmrl.objective.aggregate import count, weights
from mmrl.objective.batch import UnitBatch
from mmrl.objective.cispo import Cispo
from mmrl.objective.correction import Rejection, Tis, accepted
from mmrl.objective.entropy import Entropy, EntropySteps
from mmrl.objective.metrics import finish
from mmrl.objective.objective import Objective
from mmrl.objective.sequence import Gmpo, Gspo
from mmrl.objective.views import Dvrp, Papo
from mmrl.objective.wants import lacking
from mmrl.rollout import Chunk, Draw, Prompt, StepOutput

nan = float("nan")


def scored(reward: Any, group: Any, **more: Any) -> Scored:
    return Scored(np.array(reward, dtype=np.float64), np.array(group), **more)


@pytest.mark.parametrize(
    ("kind", "spec", "built"),
    [
        ("advantage", {"name": "ngrpo"}, Ngrpo(best=1)),
        ("advantage", {"name": "sign", "positive": 0.1}, SignAdvantage(positive=0.1, negative=1)),
        ("surrogate", {"name": "gspo"}, Gspo(level="sequence", low=3e-4, high=4e-4)),
        ("surrogate", {"name": "gmpo"}, Gmpo(low=0.4, high=0.4)),
        ("surrogate", {"name": "cispo", "ratio_cap": 1.28}, Cispo(ratio_cap=1.28)),
        ("term", {"name": "entropy", "coef": 0.01}, Entropy(coef=0.01)),
        ("term", {"name": "papo", "coef": 0.02, "entropy": 0.05}, Papo(coef=0.02, entropy=0.05)),
        ("term", {"name": "dvrp"}, Dvrp(masked=0.01, perturbed=0.01)),
        ("steps", {"name": "entropy"}, EntropySteps(fraction=0.2)),
        ("correction", {"name": "tis", "level": "sequence"}, Tis(level="sequence", cap=2)),
        ("shaping", {"name": "vogue"}, Vogue(visual=0.1, token=0.01)),
        ("shaping", {"name": "grpo_care"}, GrpoCare(weight=0.5)),
        ("shaping", {"name": "majority"}, Majority(weight=1)),
        ("shaping", {"name": "grpo_lambda"}, GrpoLambda(gate=0.75)),
        ("shaping", {"name": "noisy_verifier"}, NoisyVerifier(mode="backward")),
        ("shaping", {"name": "puzzlecraft"}, PuzzleCraft(power=1, floor=0.1)),
    ],
)
def test_names_in_a_config(kind: str, spec: dict[str, Any], built: Any) -> None:
    assert build(kind, spec) == built


@pytest.mark.parametrize(
    ("kind", "spec", "said"),
    [
        ("surrogate", {"name": "cispo", "ratio_cap": 0.28}, "greater than or equal to 1"),
        ("shaping", {"name": "noisy_verifier", "false_positive": 0.5, "false_negative": 0.5}, "must be below 1"),
        ("correction", {"name": "tis", "reject": [{"statistic": "k2", "low": 0.5, "high": 2}]}, "upper bound alone"),
        ("correction", {"name": "tis", "reject": [{"high": 2}]}, "low < 1 < high"),
    ],
)
def test_options_that_make_no_sense(kind: str, spec: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        build(kind, spec)


# ---- what a policy must offer


class Denoiser:
    flat_chunks = True


class Writer:
    flat_chunks = False

    def keep_slow(self) -> None: ...


@pytest.mark.parametrize(
    ("objective", "where", "who"),
    [
        (
            Objective(DrAdvantage(), Gspo(), aggregate="seq_mean_token_mean"), ("surrogate",),
            "surrogate gspo needs all steps of a sample",
        ),
        (Objective(DrAdvantage(), terms=(Dvrp(), Entropy(coef=0.1))), ("terms", 1), "term entropy needs an entropy"),
        (Objective(DrAdvantage(), terms=(Papo(coef=0.1, entropy=0.1),)), ("terms", 0), "term papo needs an entropy"),
        (Objective(DrAdvantage(), select=EntropySteps()), ("steps", "select"), "steps.select needs an entropy"),
        (Objective(DrAdvantage(), shaping=(Vogue(visual=0),)), ("shaping", 0), "shaping vogue needs an entropy"),
    ],
)  # fmt: skip
def test_what_denoising_does_not_have_is_refused(objective: Objective, where: tuple[Any, ...], who: str) -> None:
    found = lacking(objective, Denoiser())
    assert found[0][0] == where and found[0][1].startswith(who)
    assert lacking(objective, Writer()) == []


@pytest.mark.parametrize(
    ("objective", "where", "who"),
    [
        (
            Objective(DrAdvantage(), correction=Tis()), ("correction",),
            "correction tis needs log-probs reported by an inference engine",
        ),
        (
            Objective(DrAdvantage(), shaping=(Vogue(token=0),)), ("shaping", 0),
            "shaping vogue needs rollouts through another view",
        ),
        (
            Objective(DrAdvantage(), shaping=(Vogue(token=0, visual=0), GrpoCare())), ("shaping", 1),
            "shaping grpocare needs the measurement 'consistency'",
        ),
    ],
)  # fmt: skip
def test_what_must_be_offered_by_name(objective: Objective, where: tuple[Any, ...], who: str) -> None:
    assert [(place, text.startswith(who)) for place, text in lacking(objective, Writer())] == [(where, True)]
    able = Writer()
    able.offers = frozenset({"engine_log_prob", "branches", "consistency"})  # type: ignore[attr-defined]
    assert lacking(objective, able) == []


def test_every_part_that_lacks_something_is_told() -> None:
    both = Objective(DrAdvantage(), Gspo(), terms=(Entropy(coef=0.1),), aggregate="seq_mean_token_mean")
    assert [where for where, _ in lacking(both, Denoiser())] == [("surrogate",), ("terms", 0)]


def test_terms_of_both_families_are_free_for_denoising() -> None:
    terms = (Papo(coef=0.1, view="blank", divergence="full_kl"), Dvrp(), Entropy(coef=0))
    assert lacking(Objective(DrAdvantage(), Cispo(), terms=terms), Denoiser()) == []


# ---- terms


def test_papo_pushes_the_perception_kl_up_and_stops_at_the_clip() -> None:
    log_prob = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    masked = torch.tensor([[-1.5, -4.0]])
    weight = torch.full((1, 2), 0.5)
    batch = UnitBatch(torch.tensor([[-1.0, -1.0]]), torch.zeros(1, 2), weight, torch.ones(1, 2))
    objective = Objective(DrAdvantage(), terms=(Papo(coef=1, clip=0.5),))
    loss, metrics = objective.loss(
        StepOutput(log_prob), batch, {("masked", "policy"): StepOutput(masked)}, lambda p, q, n: p.log_prob
    )
    loss.backward()
    assert log_prob.grad is not None
    assert log_prob.grad[0, 0] < 0 and log_prob.grad[0, 1] == 0, (
        "descent makes the drawn word likelier than when masked"
    )
    assert finish(metrics)["papo_kl"] == pytest.approx((np.exp(-0.5) - 0.5 + 0.5) / 2)


def test_a_view_counts_only_the_samples_that_look_different() -> None:
    """Three samples of two steps, the second without a picture: value and denominator leave it out."""
    mask = torch.ones(3, 2, dtype=torch.bool)
    seen = mask & torch.tensor([[True], [False], [True]])
    masked = torch.tensor([[-2.0, -1.0], [nan, nan], [-1.0, -3.0]])
    chunk = Chunk(torch.arange(3), torch.arange(2).expand(3, 2))
    old = -torch.ones(3, 2)
    batch = UnitBatch.of(
        chunk, old, torch.zeros(3), weights(mask, "token_mean", count(mask)), torch.ones(3, 2),
        {"masked": weights(seen, "token_mean", count(seen))},
    )  # fmt: skip
    objective = Objective(DrAdvantage(), terms=(Papo(coef=0.5, entropy=1.0),))
    leaf = old.clone().requires_grad_()
    loss, metrics = objective.loss(
        StepOutput(leaf), batch, {("masked", "policy"): StepOutput(masked)}, lambda p, q, n: p.log_prob
    )
    loss.backward()
    values = finish(metrics)
    k3 = [np.exp(d) - d - 1 for d in (-1.0, 0.0, 0.0, -2.0)]
    assert values["papo_kl"] == pytest.approx(np.mean(k3)) and values["papo_entropy_masked"] == pytest.approx(7 / 4)
    assert float(loss.detach()) == pytest.approx(-0.5 * np.mean(k3) + 1 + 7 / 4)
    assert leaf.grad is not None and not leaf.grad[1].any() and leaf.grad[0].all()


def test_entropy_is_a_bonus_and_never_silently_nothing() -> None:
    entropy = torch.tensor([[0.5, 1.5]], requires_grad=True)
    batch = UnitBatch(torch.zeros(1, 2), torch.zeros(1, 2), torch.full((1, 2), 0.5), torch.ones(1, 2))
    objective = Objective(DrAdvantage(), terms=(Entropy(coef=0.2),))
    loss, metrics = objective.loss(StepOutput(torch.zeros(1, 2), entropy), batch, {}, lambda p, q, n: p.log_prob)
    loss.backward()
    assert entropy.grad is not None and torch.allclose(entropy.grad, torch.full((1, 2), -0.1))
    assert finish(metrics)["entropy"] == 1.0
    with pytest.raises(RunError, match="gives none"):
        objective.loss(StepOutput(torch.zeros(1, 2)), batch, {}, lambda p, q, n: p.log_prob)


def test_two_perception_terms_keep_their_own_gradients() -> None:
    """One asks for the masked gradient, the other does not: together they give the sum of both alone."""
    view = ("masked", "policy")

    def slope(*terms: Any) -> torch.Tensor:
        masked = torch.tensor([[-2.0, -1.5]], requires_grad=True)
        batch = UnitBatch(-torch.ones(1, 2), torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2))
        out = StepOutput(-torch.ones(1, 2))
        loss, _ = Objective(DrAdvantage(), terms=terms).loss(
            out, batch, {view: StepOutput(masked)}, lambda p, q, n: p.log_prob
        )
        return torch.autograd.grad(loss, masked)[0]

    free, fixed = Papo(coef=0.3, aug_grad="recompute"), Papo(coef=0.2)
    assert torch.equal(slope(free), slope(free, fixed)) and slope(free).abs().min() > 0


# ---- branches, selectors


def draws(groups: int, members: int) -> list[Draw]:
    return [Draw(Prompt(str(g), "?"), g, m, 100 * g + m, 977 * g) for g in range(groups) for m in range(members)]


def test_the_share_of_a_branch_is_kept_over_groups() -> None:
    objective = Objective(DrAdvantage(), shaping=(Vogue(start=0.3, end=0.3),))
    found = objective.branched(draws(400, 4), 0.5)
    noisy = [draw for draw in found if draw.view == "noisy"]
    assert len(noisy) / len(found) == pytest.approx(0.3, abs=0.03)
    assert {draw.member for draw in noisy} == {0, 1}, "the first members of a group, one or two of four"
    assert [(d.group, d.member, d.seed) for d in found] == [(d.group, d.member, d.seed) for d in draws(400, 4)]
    assert Objective(DrAdvantage()).branched(draws(2, 2), 0) == draws(2, 2)


def test_entropy_steps_of_the_batch_or_of_the_sample() -> None:
    entropy = torch.tensor([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]])
    mask = torch.ones(2, 4, dtype=torch.bool)
    batch = EntropySteps(fraction=0.5).after_measuring(mask, entropy, entropy.flatten())
    sample = EntropySteps(fraction=0.5, among="sample").after_measuring(mask, entropy, entropy.flatten())
    assert batch.tolist() == [[False] * 4, [True] * 4]
    assert sample.tolist() == [[False, False, True, True]] * 2


def test_gspo_clips_whole_samples() -> None:
    old = torch.zeros(2, 3)
    log_prob = torch.tensor([[0.1, 0.1, 0.1], [0.3, -0.3, 0.0]], requires_grad=True)
    mask = torch.ones(2, 3, dtype=torch.bool)
    loss, seen = Gspo(low=0.05, high=0.05)(log_prob, old, torch.ones(2, 3), mask)
    loss.sum().backward()
    assert seen.high.tolist() == [[True] * 3, [False] * 3]
    assert log_prob.grad is not None and not log_prob.grad[0].any() and log_prob.grad[1].all()


# ---- correction


def test_icepop_and_masks_of_whole_samples() -> None:
    engine = torch.zeros(2, 3)
    old = torch.tensor([[0.0, 0.9, -0.9], [0.1, 0.1, 0.1]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    assert accepted(old, engine, mask, "k1", "token", 0.5, 2.0).tolist() == [[True, False, False], [True, True, False]]
    assert accepted(old, engine, mask, "k2", "max", None, 0.1).tolist() == [[False] * 3, [True, True, False]]
    assert Tis(reject=(Rejection(low=0.5, high=2.0),)).keep(old, engine, mask).sum() == 3


# ---- rewards and advantages


def test_care_by_eye() -> None:
    accuracy = np.array([1.0, 1, 1, 0, nan, 1])
    likely = np.array([0.99, 0.2, nan, 0.99, 0.9, 0.5])
    group = np.array([0, 0, 0, 0, 0, 1])
    assert consistency_bonus(accuracy, likely, group, 0.5).tolist() == [0.5, 0, 0, 0, 0, 0.5]
    low = consistency_bonus(np.array([0.05, 0.0]), np.array([0.9, 0.1]), np.array([0, 0]), 0.5)
    assert low.tolist() == [0, 0], "a right answer has an accuracy of at least 0.1"


def test_an_all_wrong_group_has_an_advantage_under_ngrpo_alone() -> None:
    s = scored([0, 0, 0, 1, 1, 0, 1, 0, nan], [0, 0, 0, 1, 1, 2, 3, 3, 3])
    assert not GroupAdvantage(scale="group")(s)[:3].any()
    advantage = Ngrpo()(s)
    assert (advantage[:3] < 0).all() and not advantage[3:6].any() and advantage[6] > 0 > advantage[7]
    assert advantage[8] == 0
    assert SignAdvantage(positive=0.1)(s).tolist() == [-1, -1, -1, 0.1, 0.1, -1, 0.1, -1, 0]
    with pytest.raises(UserError, match="a reward of 2 is above best 1"):
        Ngrpo()(scored([2, 0], [0, 0]))


def test_majority_ties_and_missing_answers() -> None:
    answers = ["b", "a", "a", "b", None, None, None, None, "c"]
    assert majority(answers, np.array([0] * 7 + [1, 1])).tolist() == [1, 0, 0, 1, 0, 0, 0, 0, 1]
    none = Majority().before(scored([0, 0], [0, 0], answers=(None, None)))
    assert none.reward.tolist() == [0, 0], "missing answers do not win"
    voting = scored([0, nan, nan, 0, 0], [0] * 5, answers=("x", "y", "y", "x", "z"))
    assert Majority(weight=0.5).before(voting).reward[[0, 3, 4]].tolist() == [0.5, 0.5, 0]


def test_the_length_counts_only_in_well_solved_groups() -> None:
    accuracy, length = np.array([1.0, 1, 1, 0, 1, 1, 0, 0]), np.array([3.0, 5, 7, 1, 2, 9, 1, 1])
    added = length_penalty(accuracy, length, np.array([0] * 4 + [1] * 4), 0.75, 0.1)
    np.testing.assert_allclose(added, [0.1, 0, -0.1, 0, 0, 0, 0, 0])
    s = scored(accuracy, [0] * 4 + [1] * 4, extra={"length": length})
    np.testing.assert_allclose(GrpoLambda().before(s).reward, accuracy + added)
    with pytest.raises(UserError, match="'length' of the samples"):
        GrpoLambda().before(scored(accuracy, [0] * 8))


def test_noisy_verifier_wants_labels() -> None:
    with pytest.raises(UserError, match=r"0 or 1, got 0\.5"):
        NoisyVerifier().before(scored([0.5, 1], [0, 0]))
    s = scored([0, 1, nan], [0, 0, 0])
    np.testing.assert_allclose(
        NoisyVerifier(false_positive=0.1, false_negative=0.1).before(s).reward[:2], [-0.125, 1.125]
    )
    clipped = NoisyVerifier(false_positive=0.5, false_negative=0.45).before(s).reward
    np.testing.assert_allclose(clipped[:2], [-5, 5])
    assert NoisyVerifier(mode="forward", false_negative=0.2)(np.zeros(3), s).tolist() == [-0.8, 0.2, 0]


def test_a_collapsed_group_counts_a_tenth() -> None:
    reward = [1, 0, 1, 0, 1, 0, 1, 0]
    s = scored(reward, [0] * 4 + [1] * 4, answers=("a", "b", "c", "d", "a", "a", "a", "a"))
    advantage = GroupAdvantage(scale="none")(s)
    np.testing.assert_allclose(PuzzleCraft()(advantage, s), advantage * np.array([0.75] * 4 + [0.1] * 4))
    np.testing.assert_allclose(PuzzleCraft(strength=0.5)(advantage, s)[:4], advantage[:4] * 0.875)
    with pytest.raises(UserError, match="between 0 and 1, got 2"):
        PuzzleCraft()(advantage, scored([2, 0], [0, 0], answers=("a", "b")))


def test_a_reward_may_be_named() -> None:
    parts = np.array([[1.0, 5.0], [0.0, 7.0]])
    s = scored([6, 7], [0, 0], components=parts, names=("right", "style"), answers=("a", "b"))
    assert s.column("right").tolist() == [1, 0] and s.column(None).tolist() == [6, 7]
    assert PuzzleCraft(reward="right")(np.ones(2), s).tolist() == [0.5, 0.5]
    with pytest.raises(UserError, match="no reward 'wrong' among right, style"):
        s.column("wrong")


@pytest.mark.parametrize("shaping", [Vogue(), GrpoCare(), Majority(), GrpoLambda(), PuzzleCraft(), Shaping()])
def test_unscorable_samples_stay_out(shaping: Shaping) -> None:
    extra = {"length": np.arange(6.0), "consistency": np.full(6, 0.5), "uncertainty/noisy": np.ones(6)}
    s = scored([1, 0, nan, nan, 1, nan], [0, 0, 0, 1, 1, 2], answers=tuple("aabbcc"), extra=extra)
    after = shaping.before(s)
    assert np.isnan(after.reward).tolist() == np.isnan(s.reward).tolist()
    advantage = shaping(DrAdvantage()(after), after)
    assert np.isfinite(advantage).all() and not advantage[np.isnan(s.reward)].any()


# ---- refill


def test_useful_and_admitted_groups() -> None:
    s = scored([1, 1, 0, 1, 0, 0, 1, 0, 1, nan], [0, 0, 1, 1, 2, 2, 5, 5, 7, 7])
    assert useful(s).tolist() == [1, 5]
    assert np.isfinite(admitted(s, 1).reward).nonzero()[0].tolist() == [2, 3]
    wide = scored([1, 1, 1, 0, 0, 0, 0, 1], [0] * 4 + [1] * 4)
    assert useful(wide, low=0.5).tolist() == [0] and useful(wide, high=0.5).tolist() == [1]
    assert useful(scored([], [])).tolist() == []


# ---- in a config


def test_a_config_names_correction_and_refill() -> None:
    base = "stages.rl.objective"
    changes = ["stages.rl.curriculum={refill: {max_rounds: 4, high: 0.9}}", f"{base}.surrogate={{name: cispo}}"]
    resolved = load("quickstart/generative", changes, read_data=False)
    written = dump(resolved)["stages"]["rl"]
    assert written["curriculum"] == {"refill": {"max_rounds": 4, "low": None, "high": 0.9}, "checklist": None}
    assert written["objective"]["correction"] is None and written["objective"]["surrogate"]["ratio_cap"] == 5
    gspo = f"{base}.surrogate={{name: gspo}}"
    refused = [
        ([f"{base}.correction={{name: tis}}"], "needs log-probs reported by"),
        ([gspo, f"{base}.aggregate=seq_mean_token_mean"], "use surrogate clip"),
        ([gspo], r"objective.*aggregate token_mean .* use seq_mean_token_mean or seq_mean_token_sum"),
        ([f"{base}.advantage={{name: treepo}}"], "this objective reads a tree; add branch"),
        ([f"{base}.surrogate={{name: dcpo}}"], "surrogate dcpo needs a probability of each step"),
        ([f"{base}.surrogate={{name: aspo}}"], "surrogate aspo needs all steps of a sample"),
        ([f"{base}.terms=[{{name: kl, coef: 0.1, on: certain}}]"], "term kl needs an entropy"),
        ([f"{base}.shaping=[{{name: rac}}]"], "shaping rac needs the measurement 'rac'"),
    ]
    for given, said in refused:
        with pytest.raises(UserError, match=said):
            load("quickstart/generative", given, read_data=False)
    schema = json_schema()
    assert "component_correction" in schema["$defs"] and "RefillSection" in schema["$defs"]
