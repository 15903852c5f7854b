"""Trees in the core: shared edges once, pruning, and how several rewards become one advantage."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from toy_policy import FakeGroup, SharedMail, ToyPolicy, gradients, stage, work

from mmrl.advantage.branch import BranchAdvantage, by_depth, fused, last_split, once
from mmrl.advantage.dcpo import DcpoAdvantage
from mmrl.advantage.group import GroupAdvantage, standardised
from mmrl.advantage.shaping import Clamp
from mmrl.advantage.tree import apart
from mmrl.advantage.types import Scored
from mmrl.advantage.vogue import Vogue
from mmrl.curriculum.selection import BestOfN, WidthPruned
from mmrl.errors import UserError
from mmrl.generative.forest import forest
from mmrl.generative.plan import FlowPlan
from mmrl.meter import Meter
from mmrl.objective.batch import UnitBatch
from mmrl.objective.objective import Objective
from mmrl.objective.sequence import Gspo
from mmrl.objective.steps import DepthPruned
from mmrl.objective.surrogate import Clip
from mmrl.rollout import Draw, Prompt, StepOutput, Tree

STEPS, LEAVES = 20, 16
TREE: dict[str, Any] = {"num_steps": STEPS, "start_noise": "shared", "branch": {"at": [0, 3, 6, 9]}}


def draws(groups: int = 1) -> list[Draw]:
    return [Draw(Prompt(f"p{g}", "x"), g, m, 100 * g + m, g) for g in range(groups) for m in range(LEAVES)]


def scored(groups: int = 1, seed: int = 0, **options: Any) -> Scored:
    plan = FlowPlan(**{**TREE, **options})
    trees = forest(plan, draws(groups), torch.ones(STEPS, dtype=torch.bool))
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), LEAVES)
    return Scored(
        rng.normal(size=groups * LEAVES), group, node=trees.path.numpy(), log_prob=rng.normal(size=trees.path.shape)
    )


def edges(
    selection: Any = None,
    steps: torch.Tensor | None = None,
    noisy: torch.Tensor | None = None,
    step: int = 0,
    **options: Any,
) -> int:
    """Trained (row, step) pairs of one tree."""
    one = scored(**options)
    objective = Objective(BranchAdvantage(), **({} if selection is None else {"selection": selection}))
    keep = objective.selected(objective.advantages(one), one, step)
    mask = torch.ones(LEAVES, STEPS, dtype=torch.bool) if noisy is None else noisy
    planned = torch.ones(STEPS, dtype=torch.bool) if steps is None else steps
    return int(objective.train_mask(mask, planned, [0] * LEAVES, torch.as_tensor(keep)).sum())


def test_the_counts_of_the_original() -> None:
    """203 calls, 218 edges, 138 after depth pruning, 34 with Branch-Mix, of a tree of 20 steps and 16 leaves."""
    plan, every = FlowPlan(**TREE), torch.ones(STEPS, dtype=torch.bool)
    trees = forest(plan, draws(), every)
    assert trees.calls() == 203 and trees.edges(every) == 218
    assert edges() == 218
    pruned = DepthPruned(drop=(15, 16, 17, 18, 19), every=30, stop=10)
    assert edges(steps=pruned.before_rollout(STEPS, 0, 0)) == 138
    window = torch.zeros(STEPS, dtype=torch.bool)
    window[:4] = True
    mixed = forest(FlowPlan(**TREE, stochastic="selected"), draws(), window)
    assert mixed.edges(every) == 34 and edges(noisy=mixed.noisy) == 34


def test_depth_pruning_moves_towards_the_last_split() -> None:
    pruned = DepthPruned(drop=(15, 16), every=30, stop=10)
    dropped = [
        (~pruned.before_rollout(STEPS, i, 0)).nonzero().flatten().add(1).tolist() for i in (0, 29, 30, 149, 150, 999)
    ]
    assert dropped == [[15, 16], [15, 16], [14, 15], [11, 12], [10, 11], [10, 11]]
    with pytest.raises(ValueError, match="depths 1 to 4"):
        pruned.validate_for(4)


def test_pruning_ends() -> None:
    assert [edges(WidthPruned(until=3), step=step) for step in (2, 3)] == [218 - 8 * 10, 218]
    ends = DepthPruned(until=40)
    assert [edges(steps=ends.before_rollout(STEPS, step, 0)) for step in (0, 39, 40)] == [138, 138, 218]


def test_width_pruning_drops_edges_after_the_last_split_only() -> None:
    one = scored()
    assert one.node is not None and last_split(one.group, one.node) == 9
    advantage = BranchAdvantage()(one)
    halves = WidthPruned(mode="per_branch")(advantage, one)
    assert halves[:, :10].all() and (halves[:, 10:].sum(0) == 8).all()
    for pair in range(8):  # of two siblings the better
        kept = halves[2 * pair : 2 * pair + 2, -1]
        assert (
            kept.tolist() == (one.reward[2 * pair : 2 * pair + 2] == one.reward[2 * pair : 2 * pair + 2].max()).tolist()
        )
    ends = WidthPruned(mode="extremes")(advantage, one)[:, -1]
    order = np.argsort(one.reward)
    assert set(np.flatnonzero(ends)) == {*order[:4].tolist(), *order[-4:].tolist()}
    assert edges(WidthPruned()) == 218 - 8 * 10


def test_a_failed_leaf_leaves_the_statistics_and_hands_its_edges_to_a_sibling() -> None:
    one = scored()
    assert one.node is not None
    reward = one.reward.copy()
    reward[0] = np.nan
    broken = replace(one, reward=reward)
    objective = Objective(BranchAdvantage())
    advantage = objective.advantages(broken)
    assert np.isfinite(advantage).all() and not advantage[0].any()
    keep = objective.selected(advantage, broken, 0)
    assert not keep[0].any() and keep.sum() == 218 - 11  # its own chain after the last split and that split's edge
    value = fused(reward, one.node, None, "uniform")
    assert value[1, 0] == pytest.approx(np.mean(reward[1:8]))
    gone = fused(np.where(np.arange(LEAVES) < 8, np.nan, one.reward), one.node, None, "uniform")
    assert np.isnan(gone[0, 0]) and not by_depth(gone, one.group, one.node)[:8].any()


def test_trees_of_several_groups_do_not_mix_and_may_come_in_parts() -> None:
    two = scored(groups=2)
    assert two.node is not None and two.log_prob is not None
    both = BranchAdvantage(fusion="path")(two)
    for g in range(2):
        mine = two.group == g
        own = Scored(two.reward[mine], two.group[mine], node=two.node[mine], log_prob=two.log_prob[mine])
        np.testing.assert_allclose(both[mine], BranchAdvantage(fusion="path")(own))
    plan, every = FlowPlan(**TREE), torch.ones(STEPS, dtype=torch.bool)
    halves = [forest(plan, draws()[:7], every).path, forest(plan, draws()[7:], every).path]
    assert torch.equal(torch.cat(halves), forest(plan, draws(), every).path)
    keep = once(two.node, np.ones(two.node.shape, dtype=bool))
    assert keep.sum() == 2 * 218


def test_nodes_of_different_groups_differ_whatever_they_are_called() -> None:
    """A policy may count the nodes of every group from 0."""
    two = scored(groups=2)
    assert two.node is not None
    local = np.concatenate(
        [np.unique(two.node[two.group == g], return_inverse=True)[1].reshape(-1, STEPS) for g in range(2)]
    )
    assert once(local, np.ones(local.shape, dtype=bool)).sum() < 2 * 218
    found = apart(two.group, local)
    assert once(found, np.ones(local.shape, dtype=bool)).sum() == 2 * 218
    np.testing.assert_array_equal(BranchAdvantage()(replace(two, node=found)), BranchAdvantage()(two))
    assert (apart(np.array([3, 5]), np.array([[-1, 2], [2, -1]])) == -1).tolist() == [[True, False], [False, True]]


class Branching(ToyPolicy):
    """Samples of a group share their first two words, then the halves of a group share two more; nodes are counted from 0 in each
    group. Sequences have no early end."""

    def rollout(self, draws: Any, plan: Any, steps: torch.Tensor) -> Any:
        found = super().rollout(draws, plan, steps)
        node = torch.tensor([[0, 1, 2 + one.member // 3, 4 + one.member // 3, 6 + one.member] for one in draws])
        for row, one in enumerate(draws):
            for k in range(5):
                seed = hash((one.group_seed, k, int(node[row, k]))) % 2**32
                found.payload[row, k] = int(np.random.default_rng(seed).integers(1, 4))
        table = torch.cat([self.logits([one], "original") for one in draws])
        log_prob = table[:, None].expand(-1, 5, -1).gather(2, found.payload[..., None])[..., 0].detach()
        for row, sample in enumerate(found.samples):
            sample.text = "".join(map(str, found.payload[row].flip(0).tolist()))
        return replace(found, log_prob=log_prob, mask=torch.ones_like(found.mask), tree=Tree(node))


def of_ranks(world: int, objective: Objective) -> tuple[np.ndarray, dict[str, float]]:
    """The gradient of one step, added over ranks, and the metrics of the first."""
    mail, found, logged = SharedMail(world), [None] * world, [None] * world  # type: ignore[var-annotated]

    def rank(number: int) -> None:
        policy, group, meter = Branching(), FakeGroup(number, mail), Meter()
        (found[number],) = gradients(policy, work(policy, stage(objective, group_size=6), group).updates(0, meter))
        logged[number] = {**meter.values}

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(found), logged[0]  # type: ignore[return-value]


def test_a_tree_in_a_step_is_trained_once_on_any_number_of_ranks() -> None:
    """4 groups of 6: 2 + 2 x 2 + 6 distinct edges each."""
    one, metrics = of_ranks(1, Objective(BranchAdvantage()))
    assert (metrics["tree/edges"], metrics["tree/trained"]) == (4 * 12, 4 * 12)
    for world in (2, 3):
        many, metrics = of_ranks(world, Objective(BranchAdvantage()))
        np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-8)
        assert (metrics["tree/edges"], metrics["tree/trained"]) == (4 * 12, 4 * 12)
    _, pruned = of_ranks(2, Objective(BranchAdvantage(), select=DepthPruned(drop=(4, 5), stop=4)))
    assert (pruned["tree/edges"], pruned["tree/trained"]) == (4 * 12, 4 * 4)


def several(**options: Any) -> Scored:
    rng = np.random.default_rng(3)
    components = rng.normal(size=(8, 2))
    components[4:, 0] = 1.0  # a group that one reward says nothing about
    weights = np.array([1.0, 0.5])
    return Scored(
        components @ weights, np.repeat([0, 1], 4), components=components, weights=weights, names=("a", "b"), **options
    )


def test_one_reward_is_the_same_at_every_level() -> None:
    one = replace(several(), weights=np.array([1.0, 0.0]), reward=several().components[:, 0])  # type: ignore[index]
    rule = GroupAdvantage(scale="group")
    found = [Objective(rule, combine=level).advantages(one) for level in ("rewards", "advantages", "losses")]
    np.testing.assert_allclose(found[0], found[1])
    np.testing.assert_allclose(found[0], found[2])


def test_advantages_are_summed_with_weights() -> None:
    one = several()
    assert one.components is not None
    parts = [standardised(one.components[:, k], one.group, "group", 1, 1e-8) for k in range(2)]
    rule = GroupAdvantage(scale="group", eps=1e-8)
    found = Objective(rule, combine="advantages").advantages(one)
    np.testing.assert_allclose(found, parts[0] + 0.5 * parts[1])
    assert not parts[0][4:].any()
    shares = Objective(rule, combine="advantages", normalise_weights=True).advantages(one)
    np.testing.assert_allclose(shares, found / 1.5)
    scaled = Objective(rule, combine="advantages", rescale=True).advantages(one)
    np.testing.assert_allclose(scaled, (found - found.mean()) / (found.std(ddof=1) + 1e-8))


def test_losses_are_summed_with_weights() -> None:
    one, rule = several(), GroupAdvantage(scale="group")
    objective = Objective(rule, combine="losses", shaping=(Clamp(max=0.6),), surrogate=Clip(low=0.1, high=0.1))
    total, against = objective.advantages(one), objective.opposed(one)
    assert against is not None and (against <= 0).all() and one.components is not None
    old, new = torch.zeros(8, 1), torch.linspace(-0.4, 0.4, 8)[:, None].requires_grad_(True)
    weight = torch.full((8, 1), 0.125)
    batch = UnitBatch(old, torch.as_tensor(total - against).float()[:, None], weight, torch.ones(8, 1),
                      opposed=torch.as_tensor(against).float()[:, None])  # fmt: skip
    loss, seen = objective.loss(StepOutput(new), batch, {}, lambda p, q, norm: p.log_prob)
    wanted, cut = torch.zeros(()), torch.zeros(2, 8, dtype=torch.bool)
    for k, share in enumerate((1.0, 0.5)):
        own = torch.as_tensor(np.clip(standardised(one.components[:, k], one.group, "group"), -0.6, 0.6)).float()[
            :, None
        ]
        ratio = new.exp()
        cut |= torch.stack([(own < 0) & (new < np.log(0.9)), (own > 0) & (new > np.log(1.1))])[..., 0]
        wanted = wanted + share * torch.maximum(-own * ratio, -own * ratio.clamp(0.9, 1.1)).mean()
    torch.testing.assert_close(loss, wanted)
    assert [seen["clip_low"][0], seen["clip_high"][0]] == cut.sum(1).tolist()
    assert not torch.isclose(
        loss,
        objective.loss(
            StepOutput(new),
            replace(batch, opposed=None, advantage=torch.as_tensor(total).float()[:, None]),
            {},
            lambda p, q, n: p.log_prob,
        )[0],
    )


def test_a_reward_that_failed_is_no_number_at_any_level() -> None:
    one = several()
    components, reward = one.components.copy(), one.reward.copy()  # type: ignore[union-attr]
    components[1, 0], reward[1] = np.nan, np.nan
    broken = replace(one, components=components, reward=reward)
    for level in ("advantages", "losses"):
        found = Objective(GroupAdvantage(scale="group"), combine=level).advantages(broken)  # type: ignore[arg-type]
        assert np.isfinite(found).all() and found[1] == 0
    own = standardised(np.delete(components[:4, 0], 1), np.zeros(3, dtype=np.int64), "group")
    own = own + 0.5 * standardised(np.delete(components[:4, 1], 1), np.zeros(3, dtype=np.int64), "group")
    found = Objective(GroupAdvantage(scale="group"), combine="advantages").advantages(broken)
    np.testing.assert_allclose(np.delete(found[:4], 1), own)


def test_the_largest_group_std_scales_all_groups() -> None:
    one = several()
    found = standardised(one.reward, one.group, "max_group", 0, 0.0)
    largest = max(one.reward[:4].std(), one.reward[4:].std())
    np.testing.assert_allclose(
        found, (one.reward - np.repeat([one.reward[:4].mean(), one.reward[4:].mean()], 4)) / largest
    )


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"advantage": BranchAdvantage(), "shaping": (Vogue(),)}, "one advantage of a sample"),
        ({"rescale": True}, "combine: advantages"),
        (
            {"combine": "losses", "surrogate": Gspo(low=0.1, high=0.1), "aggregate": "seq_mean_token_mean"},
            "linear in the size",
        ),
        ({"selection": WidthPruned()}, "use advantage branch"),
        ({"advantage": BranchAdvantage(), "aggregate": "seq_mean_token_mean"}, "use token_mean"),
        ({"advantage": DcpoAdvantage(), "combine": "advantages"}, "use combine: rewards"),
        ({"advantage": BranchAdvantage(), "selection": BestOfN(keep=2)}, "use selection all or width_pruned"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Objective(**{"advantage": GroupAdvantage(scale="group"), **parts})
