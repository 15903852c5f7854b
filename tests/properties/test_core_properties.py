"""What must hold for any rewards, masks and splits."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmrl.advantage.care import GrpoCare
from mmrl.advantage.group import DrAdvantage, GlobalAdvantage, GroupAdvantage, RlooAdvantage
from mmrl.advantage.length_gate import GrpoLambda
from mmrl.advantage.noisy import NoisyVerifier
from mmrl.advantage.types import Advantage, Scored, Shaping
from mmrl.advantage.vogue import Vogue
from mmrl.curriculum.puzzlecraft import PuzzleCraft
from mmrl.curriculum.refill import admitted, useful
from mmrl.curriculum.selection import BestOfN
from mmrl.objective.aggregate import Counts, Mode, count
from mmrl.objective.batch import UnitBatch
from mmrl.objective.cispo import Cispo
from mmrl.objective.kl import KL, REFERENCE
from mmrl.objective.objective import Objective
from mmrl.objective.sapo import Sapo
from mmrl.objective.sequence import Gmpo, Gspo
from mmrl.objective.steps import AllSteps, FractionSteps, RandomSteps, StepSelector
from mmrl.objective.window import WindowSteps
from mmrl.rollout import Chunk, StepOutput

RULES: list[Advantage] = [
    GroupAdvantage(scale="group"),
    GroupAdvantage(scale="batch"),
    DrAdvantage(),
    RlooAdvantage(),
    GlobalAdvantage(),
]
few = settings(max_examples=40, deadline=None)


@st.composite
def batches(draw: st.DrawFn) -> Scored:
    """2 to 20 samples in up to 5 groups of any size; rewards in quarters, so that ties and constant groups are common."""
    n = draw(st.integers(2, 20))
    reward = draw(st.lists(st.one_of(st.integers(-8, 8).map(lambda k: k / 4), st.just(np.nan)), min_size=n, max_size=n))
    group = draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    return Scored(np.array(reward, dtype=np.float64), np.array(group, dtype=np.int64))


@pytest.mark.parametrize("rule", RULES)
@few
@given(scored=batches(), data=st.data())
def test_advantages_do_not_depend_on_order_names_or_shift_of_groups(
    rule: Advantage, scored: Scored, data: st.DataObject
) -> None:
    advantage = rule(scored)
    order = np.array(data.draw(st.permutations(range(len(scored)))))
    names = np.array(data.draw(st.permutations(range(5))))
    moved = rule(Scored(scored.reward[order], names[scored.group[order]]))
    np.testing.assert_allclose(moved, advantage[order], atol=1e-9)
    np.testing.assert_allclose(rule(Scored(scored.reward + 37, scored.group)), advantage, atol=1e-9)


@pytest.mark.parametrize("rule", [r for r in RULES if r in (DrAdvantage(), RlooAdvantage()) or r == RULES[0]])
@few
@given(scored=batches(), shift=st.integers(-9, 9))
def test_a_shift_of_one_group_changes_nothing(rule: Advantage, scored: Scored, shift: int) -> None:
    shifted = Scored(np.where(scored.group == 0, scored.reward + shift, scored.reward), scored.group)
    np.testing.assert_allclose(rule(shifted), rule(scored), atol=1e-9)


@pytest.mark.parametrize("rule", RULES)
@few
@given(scored=batches())
def test_advantages_sum_to_zero_in_a_group_and_follow_the_reward(rule: Advantage, scored: Scored) -> None:
    advantage = rule(scored)
    assert np.isfinite(advantage).all() and (advantage[~scored.scorable] == 0).all()
    for key in np.unique(scored.group):
        rows = scored.scorable & (scored.group == key)
        assert abs(advantage[rows].sum()) < 1e-9
        if rows.sum() < 2 or np.ptp(scored.reward[rows]) == 0:
            assert (advantage[rows] == 0).all()
        else:
            by_reward = advantage[rows][np.argsort(scored.reward[rows], kind="stable")]
            assert (np.diff(by_reward) >= -1e-12).all() and by_reward[-1] > 0 > by_reward[0]


@pytest.mark.parametrize("rule", RULES)
@few
@given(scored=batches())
def test_unscorable_samples_might_as_well_not_exist(rule: Advantage, scored: Scored) -> None:
    there = scored.scorable
    np.testing.assert_allclose(rule(scored)[there], rule(Scored(scored.reward[there], scored.group[there])), atol=1e-12)


@few
@given(n=st.integers(2, 24), value=st.floats(-1e3, 1e3, width=32), data=st.data())
def test_a_constant_group_up_to_float32_is_exactly_zero(n: int, value: float, data: st.DataObject) -> None:
    reward = np.full(n + 2, np.float32(value), dtype=np.float64)
    row = data.draw(st.integers(0, n - 1))
    reward[row] = np.nextafter(np.float32(value), np.float32(2e3))
    reward[n:] = 0, 1
    for rule in RULES:
        assert (rule(Scored(reward, np.array([0] * n + [1, 1])))[:n] == 0).all()


@few
@given(scored=batches(), half=st.integers(1, 4))
def test_best_of_n_keeps_the_right_number_and_the_extremes(scored: Scored, half: int) -> None:
    advantage = RlooAdvantage()(scored)
    kept = BestOfN(keep=2 * half)(advantage, scored)
    assert not kept[~scored.scorable].any()
    for key in np.unique(scored.group):
        rows = scored.scorable & (scored.group == key)
        assert kept[rows].sum() == min(2 * half, rows.sum())
        dropped = advantage[rows & ~kept]
        if len(dropped):
            ends = np.sort(advantage[rows & kept])
            assert (ends[:half] <= dropped.min()).all() and (ends[half:] >= dropped.max()).all()


# ---- shaping


@st.composite
def answered(draw: st.DrawFn) -> Scored:
    """2 to 16 samples with 0/1 rewards (some unscorable), answers (some missing), and everything that is measured."""
    n = draw(st.integers(2, 16))
    reward = draw(st.lists(st.sampled_from([0.0, 1.0, 1.0, np.nan]), min_size=n, max_size=n))
    group = draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    answers = draw(st.lists(st.sampled_from(["a", "b", None]), min_size=n, max_size=n))
    numbers = {
        name: np.array(draw(st.lists(st.floats(0, 1), min_size=n, max_size=n)))
        for name in ("length", "consistency", "uncertainty/noisy")
    }
    return Scored(np.array(reward), np.array(group, dtype=np.int64), answers=tuple(answers), extra=numbers)


def permuted(scored: Scored, order: np.ndarray) -> Scored:
    assert scored.answers is not None
    return Scored(
        scored.reward[order],
        scored.group[order],
        answers=tuple(scored.answers[i] for i in order),
        extra={name: values[order] for name, values in scored.extra.items()},
    )


@pytest.mark.parametrize(
    "shaping", [Vogue(), GrpoCare(), GrpoLambda(), PuzzleCraft(), NoisyVerifier(false_negative=0.2)]
)
@few
@given(scored=answered(), data=st.data())
def test_shaping_does_not_depend_on_order_and_leaves_unscorable_samples_out(
    shaping: Shaping, scored: Scored, data: st.DataObject
) -> None:
    objective = Objective(DrAdvantage(), shaping=(shaping,))
    advantage = objective.advantages(objective.shaped(scored))
    assert np.isfinite(advantage).all() and not advantage[~scored.scorable].any()
    order = np.array(data.draw(st.permutations(range(len(scored)))))
    moved = objective.advantages(objective.shaped(permuted(scored, order)))
    np.testing.assert_allclose(moved, advantage[order], atol=1e-9)


@few
@given(scored=answered())
def test_group_weights_and_bonuses_keep_the_sign_and_the_size(scored: Scored) -> None:
    base = DrAdvantage()(scored)
    weighted = PuzzleCraft()(base, scored)
    assert (np.abs(weighted) <= np.abs(base) + 1e-12).all() and (weighted * base >= 0).all()
    bonus = Vogue()(base, scored)
    assert (bonus >= base).all() and (np.sign(bonus) == np.sign(base)).all()
    assert (np.abs(bonus - base) <= np.abs(base) / 2 + 1e-12).all()


@few
@given(scored=answered(), wanted=st.integers(0, 4))
def test_a_refill_admits_whole_groups_with_signal(scored: Scored, wanted: int) -> None:
    kept = admitted(scored, wanted)
    groups = np.unique(scored.group[kept.scorable])
    assert len(groups) == min(wanted, len(useful(scored)))
    for key in groups:
        rows = scored.group == key
        np.testing.assert_array_equal(kept.reward[rows], scored.reward[rows])
        assert np.ptp(scored.reward[rows & scored.scorable]) > 0


# ---- splitting a batch


class TinyPolicy:
    """Log-probs of 8 samples x 6 steps that share one parameter vector, so that every row moves every gradient."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.features = torch.randn(8, 6, 3, generator=generator, dtype=torch.float64)
        self.theta = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)
        self.mask = torch.rand(8, 6, generator=generator) < 0.6
        self.mask[seed % 8] = False
        self.advantage = torch.randn(8, generator=generator, dtype=torch.float64)
        self.step_weight = torch.rand(8, 6, generator=generator) + 0.5
        self.old = self.log_prob(self.theta).detach() + 0.3 * torch.randn(8, 6, generator=generator)
        self.reference = self.old + 0.3

    def log_prob(self, theta: Tensor) -> Tensor:
        return -(self.features @ theta).square()

    def gradient(self, objective: Objective, ranks: list[list[Chunk]]) -> Tensor:
        """Gradient of one optimizer step: counts added over ranks, losses summed over chunks and ranks."""
        counts = Counts(0, 0)
        for rows in [sorted({int(r) for chunk in chunks for r in chunk.rows}) for chunks in ranks]:
            counts = counts + count(self.mask[rows])
        weight = objective.weights(self.mask, counts)
        total = torch.zeros(3, dtype=torch.float64)
        for chunk in (chunk for chunks in ranks for chunk in chunks):
            batch = UnitBatch.of(chunk, self.old, self.advantage, weight, self.step_weight)
            out = StepOutput(chunk.take(self.log_prob(self.theta)))
            others = {REFERENCE: StepOutput(chunk.take(self.reference))}
            loss, _ = objective.loss(out, batch, others, lambda p, q, norm: p.log_prob - q.log_prob)
            total += torch.autograd.grad(loss, self.theta)[0]
        return total


def chunks(rows: list[int], size: int) -> list[Chunk]:
    """Whole rows, `size` at a time."""
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [Chunk(torch.tensor(part), torch.arange(6).expand(len(part), 6)) for part in parts]


def columns(rows: list[int]) -> list[Chunk]:
    """One step of all rows at a time, as denoising replays them."""
    return [Chunk(torch.tensor(rows), torch.full((len(rows), 1), k)) for k in range(6)]


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("seed", [0, 3])
def test_splitting_never_changes_a_gradient(mode: Mode, seed: int) -> None:
    policy = TinyPolicy(seed)
    objective = Objective(DrAdvantage(), terms=(KL(coef=0.2),), aggregate=mode, max_steps=9)
    everything = list(range(8))
    whole = policy.gradient(objective, [chunks(everything, 8)])
    assert whole.abs().min() > 1e-3
    for ranks in (
        [chunks(everything, 1)],
        [chunks(everything, 2)],
        [chunks([5, 2, 7, 0, 1, 6, 4, 3], 3)],
        [columns(everything)],
        [chunks(everything[:4], 4), chunks(everything[4:], 4)],
        [chunks(everything[:2], 1), chunks(everything[2:], 3)],
        [columns(everything[::2]), chunks(everything[1::2], 2)],
    ):
        torch.testing.assert_close(policy.gradient(objective, ranks), whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "objective",
    [
        Objective(DrAdvantage(), Gspo(low=0.2, high=0.2), aggregate="seq_mean_token_mean"),
        Objective(DrAdvantage(), Gmpo(low=0.2, high=0.2), aggregate="seq_mean_token_mean"),
        Objective(DrAdvantage(), Cispo(ratio_cap=1.1)),
        Objective(DrAdvantage(), Sapo()),
    ],
)
def test_splitting_between_samples_never_changes_a_gradient(objective: Objective) -> None:
    """Surrogates of whole samples may be split between rows, not inside them."""
    policy = TinyPolicy(0)
    everything = list(range(8))
    whole = policy.gradient(objective, [chunks(everything, 8)])
    assert whole.abs().max() > 1e-3
    for ranks in (
        [chunks(everything, 1)],
        [chunks([5, 2, 7, 0, 1, 6, 4, 3], 3)],
        [chunks([0, 1], 1), chunks(everything[2:], 3)],
    ):
        torch.testing.assert_close(policy.gradient(objective, ranks), whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", get_args(Mode))
def test_empty_rows_leave_the_count(mode: Mode) -> None:
    policy = TinyPolicy(1)
    objective = Objective(DrAdvantage(), aggregate=mode, max_steps=9)
    full = [row for row in range(8) if policy.mask[row].any()]
    assert len(full) < 8
    with_empty = policy.gradient(objective, [chunks(list(range(8)), 8)])
    torch.testing.assert_close(with_empty, policy.gradient(objective, [chunks(full, 8)]))


# ---- steps


@few
@given(
    selector=st.one_of(
        st.just(AllSteps()),
        st.builds(FractionSteps, fraction=st.floats(0.34, 1)),
        st.builds(RandomSteps, fraction=st.floats(0.5, 1), shared=st.booleans(), among=st.none() | st.integers(2, 3)),
        st.builds(
            WindowSteps,
            size=st.integers(1, 3),
            schedule=st.sampled_from(["progressive", "decay", "exp_decay"]),
            every=st.integers(1, 9),
            stride=st.integers(0, 4),
            roll_back=st.booleans(),
            range=st.just((0, 0)),
        ),
        st.builds(WindowSteps, size=st.integers(1, 3), schedule=st.just("random"), range=st.just((0, 0))),
    ),
    num_steps=st.integers(3, 12),
    iteration=st.integers(0, 10**6),
    seed=st.integers(-5, 2**63),
)
def test_a_plan_is_never_empty_and_depends_on_its_arguments_alone(
    selector: StepSelector, num_steps: int, iteration: int, seed: int
) -> None:
    selector.validate_for(num_steps)
    plan = selector.before_rollout(num_steps, iteration, seed)
    assert plan.dtype == torch.bool and plan.shape == (num_steps,) and plan.any()
    assert torch.equal(plan, selector.before_rollout(num_steps, iteration, seed))
    mask = plan.expand(2, num_steps)
    train = selector.after_rollout(mask, [seed % 2**63, 1])
    assert train.any(dim=1).all() and not (train & ~mask).any()
