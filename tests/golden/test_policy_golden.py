"""Policy losses of reasoners against numbers of the original implementations (`data/`, each file names its source)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmrl.advantage.dcpo import DcpoAdvantage
from mmrl.advantage.group import DrAdvantage
from mmrl.advantage.history import History, Past
from mmrl.advantage.negative import Ngrpo, SignAdvantage
from mmrl.advantage.tree import TreePo, segments, subgroup, whitened
from mmrl.advantage.types import Advantage, Scored
from mmrl.objective.aggregate import Counts, Mode, count
from mmrl.objective.aspo import Aspo
from mmrl.objective.batch import UnitBatch
from mmrl.objective.cispo import Cispo
from mmrl.objective.correction import Rejection, Tis
from mmrl.objective.dcpo import Dcpo, bounds
from mmrl.objective.kl import KL, REFERENCE
from mmrl.objective.metrics import finish
from mmrl.objective.objective import Objective
from mmrl.objective.sapo import Sapo
from mmrl.objective.sequence import Gspo
from mmrl.objective.surrogate import Clip
from mmrl.objective.terms import Need, Replays
from mmrl.objective.views import Papo
from mmrl.rollout import StepOutput

DATA = Path(__file__).parent / "data"
MASKED: Need = ("masked", "policy")


def load(name: str) -> dict[str, Any]:
    return json.loads((DATA / f"{name}.json").read_text())


def tensor(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def no_divergence(p: StepOutput, q: StepOutput, norm: str) -> Tensor:
    raise AssertionError("not asked for")


def run(
    objective: Objective,
    given: dict[str, Tensor],
    counts: Counts | None = None,
    others: Replays | None = None,
    progress: float = 0.0,
) -> tuple[float, Tensor, dict[str, float]]:
    """Loss, gradient and metrics of the whole batch as one chunk."""
    mask = given["mask"].bool()
    log_prob = given["log_prob"].clone().requires_grad_()
    batch = UnitBatch(
        given["old_log_prob"],
        given["advantage"].expand_as(log_prob),
        objective.weights(mask, counts or count(mask)),
        given.get("step_weight", torch.ones_like(log_prob)),
        progress=progress,
        measured={"entropy": given["entropy"]} if "entropy" in given else {},
    )
    loss, metrics = objective.loss(StepOutput(log_prob), batch, others or {}, no_divergence)
    loss.backward()
    assert log_prob.grad is not None
    return float(loss.detach()), log_prob.grad, finish(metrics)


# ---- surrogates


@pytest.mark.parametrize("case", sorted(load("verl_loss_gspo_sapo")["outputs"]))
def test_verl_gspo_and_sapo(case: str) -> None:
    """verl's gspo is the token form; both force seq-mean-token-mean whatever aggregation is asked for. verl counts the
    steps beyond a bound from ratios on the side of the advantage only, as ours does."""
    golden = load("verl_loss_gspo_sapo")
    inputs, params, output = golden["inputs"], golden["params"], golden["outputs"][case]
    given = {name: tensor(inputs[name]) for name in ("mask", "old_log_prob", "log_prob")}
    given["advantage"] = tensor(inputs["adv_token" if "adv=token" in case else "adv_seq"])
    if "is_weights" in case:
        given["step_weight"] = tensor(inputs["rollout_is_weights"])
    surrogate = (
        Gspo(level="token", low=params["clip_low"], high=params["clip_high"])
        if case.startswith("gspo")
        else Sapo(tau_positive=params["tau_pos"], tau_negative=params["tau_neg"])
    )
    objective = Objective(DrAdvantage(), surrogate, aggregate="seq_mean_token_mean")
    loss, gradient, metrics = run(objective, given)
    assert loss == pytest.approx(output["loss"], abs=1e-5)
    torch.testing.assert_close(gradient, tensor(output["grad_log_prob"]), rtol=1e-4, atol=1e-5)
    clipped = metrics["clip_low"] + metrics["clip_high"]
    assert clipped == pytest.approx(output["metrics"]["actor/pg_clipfrac"], abs=1e-5)


@pytest.mark.parametrize(
    ("case", "surrogate", "mode"),
    [
        ("gspo(grpo agg, sequence ratio)", Gspo(low=0.03, high=0.04), "seq_mean_token_mean"),
        ("luspo", Gspo(low=0.2, high=0.28), "seq_mean_token_sum"),
        ("sapo", Sapo(), "seq_mean_token_mean"),
        ("cispo(eps_high=1.2 absolute cap)", Cispo(ratio_cap=1.2), "token_mean"),
    ],
)
def test_trl_losses(case: str, surrogate: Any, mode: Mode) -> None:
    """TRL divides by accumulation steps, 2 here; ours count over the whole optimizer step: two such micro-batches give
    this. cispo counts the items of the generation batch, given as 120, and its metric counts the capped steps of positive
    advantage only. The gspo case was made with bounds of 0.03 and 0.04, which the file does not say. vespo is not offered; grpo, bnpo, dr_grpo and dapo are tested with the core."""
    golden = load("trl_grpo_losses_a")
    inputs, params, output = golden["inputs"], golden["params"], golden["outputs"][case]
    given = {name: tensor(inputs[name]) for name in ("mask", "old_log_prob", "log_prob")}
    given["advantage"] = tensor(inputs["advantages"])[:, None]
    counts = count(given["mask"].bool())
    counts = counts + counts
    if mode == "token_mean":
        counts = Counts(params["num_items_in_batch"], counts.sequences)
    loss, gradient, metrics = run(Objective(DrAdvantage(), surrogate, aggregate=mode), given, counts)
    assert loss == pytest.approx(output["loss"], abs=1e-5)
    torch.testing.assert_close(gradient, tensor(output["grad_log_prob"]), rtol=1e-4, atol=1e-6)
    if case.startswith("cispo"):
        ratio = (given["log_prob"] - given["old_log_prob"]).exp()
        capped = (ratio > 1.2) & given["mask"].bool()
        positive = float((capped & (given["advantage"] > 0)).sum() / given["mask"].sum())
        assert positive == pytest.approx(output["metrics"]["cispo_clip_ratio"], abs=1e-5)
        assert metrics["clip_high"] == pytest.approx(float(capped.sum() / given["mask"].sum()), abs=1e-5)


class GivenSplit(Aspo):
    """ASPO where the file says which steps have a low entropy."""

    def width(self, batch: UnitBatch) -> Tensor:
        return torch.where(batch.measured["entropy"] == 1, self.certain, self.uncertain)


@pytest.mark.parametrize("case", sorted(load("seed_aspo")["outputs"]))
def test_aspo(case: str) -> None:
    """The original counts the capped steps of each sign over the steps of that sign. How it splits steps by entropy is in
    the references."""
    golden = load("seed_aspo")
    inputs, params, output = golden["inputs"], golden["params"], golden["outputs"][case]
    given = {name: tensor(inputs[name]) for name in ("mask", "old_log_prob", "log_prob")}
    if "big=True" in case:
        assert inputs["big_log_prob"] == "old + (+1.6 even t, -1.6 odd t)"
        given["log_prob"] = given["old_log_prob"] + torch.tensor([1.6, -1.6] * 5)
    signs = {"token_adv": tensor(inputs["adv_token"]), "all_pos": tensor([1.0]), "all_neg": tensor([-1.0])}
    given |= {"advantage": signs[case.split("|")[0]], "entropy": tensor(inputs["is_low_entropy_token"])}
    assert params["c_neg"] == params["c_pos"]
    surrogate = GivenSplit(certain=params["low_ent_eps"], uncertain=params["high_ent_eps"], cap=params["c_neg"])
    loss, gradient, metrics = run(Objective(DrAdvantage(), surrogate), given)
    assert loss == pytest.approx(output["loss"], abs=1e-5)
    torch.testing.assert_close(gradient, tensor(output["grad_log_prob"]), rtol=1e-4, atol=1e-6)
    upper, lower, negative, positive = output["clipfracs"]
    mask, advantage = given["mask"].bool(), given["advantage"].expand_as(gradient)
    shares = [float((mask & side).sum() / mask.sum()) for side in (advantage < 0, advantage > 0)]
    assert metrics["clip_high"] == pytest.approx(upper, abs=1e-5)
    assert metrics["clip_low"] == pytest.approx(lower, abs=1e-5)
    assert metrics["clip_dual"] == pytest.approx(negative * shares[0] + positive * shares[1], abs=1e-5)


def test_dcpo_bounds() -> None:
    golden = load("seed_dcpo")
    params = golden["params"]
    q = tensor(golden["inputs"]["old_prob"])
    lower, upper = bounds(q.log(), params["eps_low"], params["eps_high"], params["ratio_cap"])
    torch.testing.assert_close(lower, tensor(golden["outputs"]["ratio_lower"]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(upper, tensor(golden["outputs"]["ratio_upper"]), rtol=1e-5, atol=1e-6)
    defaults = Dcpo()
    assert (defaults.low, defaults.high, defaults.cap) == (params["eps_low"], params["eps_high"], params["ratio_cap"])


# ---- advantages


def test_dcpo_advantages_and_what_is_remembered() -> None:
    """Groups that all ended alike learn from what their prompt was worth before."""
    golden = load("seed_dcpo")
    inputs, outputs = golden["inputs"], golden["outputs"]
    group = np.array(inputs["group_index"])
    columns = [inputs[name] for name in ("previous_visits", "running_mean", "running_std")]
    history = History({str(g): Past(*past) for g, *past in zip(group.tolist(), *columns, strict=True)})
    scored = Scored(np.array(inputs["token_level_rewards"]).sum(1), group, prompts=tuple(map(str, group.tolist())))
    advantage = DcpoAdvantage()(history.known(scored))
    np.testing.assert_allclose(advantage, [row[0] for row in outputs["advantages"]], rtol=1e-5, atol=1e-6)
    assert (advantage[4:8] != 0).all() and (advantage[12:] != 0).all()
    history.add(scored)
    for name, past in history.of.items():
        assert past.mean == pytest.approx(outputs["new_running_mean"][name], rel=1e-6)
        assert past.std == pytest.approx(outputs["new_running_std"][name], rel=1e-6)


def treepo() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards, groups and nodes of the golden's leaves: "q0#1-0#2-1" is group 0, then a node for every part, two steps each;
    the steps behind a leaf's last node are in none."""
    inputs = load("seed_treepo")["inputs"]
    ids: dict[tuple[str, ...], int] = {}
    node = np.full((len(inputs["leaf_paths"]), inputs["T"]), -1)
    group = []
    for row, path in enumerate(inputs["leaf_paths"]):
        root, *parts = path.split("#")
        group.append(int(root[1:]))
        for depth in range(len(parts)):
            node[row, 2 * depth : 2 * depth + 2] = ids.setdefault((root, *parts[: depth + 1]), len(ids))
    return np.array(inputs["rewards"]), np.array(group), node


@pytest.mark.parametrize(("name", "weighting"), [("group_size", "size"), ("average", "mean")])
@pytest.mark.parametrize("drop_flat", [False, True])
def test_treepo_subgroups(name: str, weighting: Any, drop_flat: bool) -> None:
    """The original whitens every step of the padded batch, which all are drawn here."""
    reward, group, node = treepo()
    expected = np.array(load("seed_treepo")["outputs"][f"subgroup|{name}|drop_zero_std={drop_flat}"])
    scored = Scored(reward, group, node=node, extra={"length": np.full(len(reward), 6.0)})
    advantage = TreePo(weighting=weighting, drop_flat=drop_flat)(scored)
    np.testing.assert_allclose(np.repeat(advantage[:, None], 6, 1), expected, rtol=1e-5, atol=1e-6)


def test_treepo_and_spo_segments() -> None:
    """Per step; a step in no node has a progress of 0, which whitening moves."""
    reward, group, node = treepo()
    outputs = load("seed_treepo")["outputs"]
    progress = segments(subgroup(reward, group, node, alone=True), group, node, sibling_std=False)
    expected = outputs["segment_progress step=2"]
    np.testing.assert_allclose(whitened(progress, np.ones(node.shape)), expected, rtol=1e-5, atol=1e-6)
    spo = segments(reward, group, node, sibling_std=True)
    np.testing.assert_allclose(spo, outputs["spo_sibling_norm step=2"], atol=1e-9)


@pytest.mark.parametrize(
    ("case", "component"),
    [
        ("ngrpo max=1.0 n_virtual=1", Ngrpo()),
        ("ngrpo max=1.0 n_virtual=2", Ngrpo(virtual=2)),
        ("psr_nsr positive w=1.0", SignAdvantage(positive=1, negative=0)),
        ("psr_nsr negative w=1.0", SignAdvantage()),
        ("psr_nsr weighted w=0.1", SignAdvantage(positive=0.1)),
    ],
)
def test_ngrpo_and_nsr(case: str, component: Advantage) -> None:
    """The original spreads a sample's advantage over its tokens; its first token is compared."""
    golden = load("seed_ngrpo_nsr_advantages")
    inputs = golden["inputs"]
    rewards = inputs["token_level_rewards" if case.startswith("ngrpo") else "binary_token_level_rewards_for_psr_nsr"]
    scored = Scored(np.array(rewards).sum(1), np.array(inputs["group_index"]))
    np.testing.assert_allclose(component(scored), [row[0] for row in golden["outputs"][case]], rtol=1e-5, atol=1e-6)


# ---- perception


def papo(case: str, clip_kl: float | None = None, **options: Any) -> Objective:
    """PAPO's objective of a case."""
    params = load("papo_perception_loss")["params"]
    reference = () if "no ref KL" in case else (KL(coef=params["kl_coef"], estimator="k3"),)
    surrogate = Clip(low=params["clip_low"], high=params["clip_high"], dual=params["dual"])
    mode: Mode = "seq_mean_token_mean" if case == "seq averaging" else "token_mean"
    return Objective(DrAdvantage(), surrogate, terms=(*reference, Papo(**options, clip=clip_kl)), aggregate=mode)


PAPO: dict[str, dict[str, Any]] = {
    "papo_g gamma=0.02 (3B, no entropy loss)": {"coef": 0.02},
    "papo 7B gamma=0.02 double entropy 0.05, masked log-probs constant (repo default)": {"coef": 0.02, "entropy": 0.05},
    "papo 7B gamma=0.02 double entropy 0.05, masked log-probs recomputed with grad": {
        "coef": 0.02,
        "entropy": 0.05,
        "aug_grad": "recompute",
    },
    "papo_d gamma=0.01 double entropy 0.03 no ref KL": {"coef": 0.01, "entropy": 0.03},
    "clipped perception KL at 0.02": {"coef": 0.02, "clip_kl": 0.02},
    "annealed coef 0.01 of base 0.02 (entropy terms discounted by 0.5)": {
        "coef": 0.02,
        "entropy": 0.03,
        "anneal": True,
    },
    "seq averaging": {"coef": 0.02},
}


@pytest.mark.parametrize("case", PAPO)
def test_papo(case: str) -> None:
    """The cases `token top-20% mask` and `sft loss on correct rollouts` are options that ours does not have.

    With seq averaging the original leaves the entropies token means; the case has none.
    """
    golden = load("papo_perception_loss")
    inputs, output = golden["inputs"], golden["outputs"][case]
    given = {name: tensor(inputs[name]) for name in ("mask", "old_log_prob", "log_prob")}
    given["advantage"] = tensor(inputs["advantages"])
    masked = tensor(inputs["aug_log_prob"]).requires_grad_()
    others = {REFERENCE: StepOutput(tensor(inputs["ref_log_prob"])), MASKED: StepOutput(masked)}
    objective = papo(case, **PAPO[case])
    assert objective.needs == ((MASKED,) if "no ref KL" in case else (REFERENCE, MASKED))
    loss, gradient, metrics = run(objective, given, others=others, progress=0.5 if "annealed" in case else 0.0)
    assert loss == pytest.approx(output["total_loss"], abs=1e-5)
    torch.testing.assert_close(gradient, tensor(output["grad_log_prob"]), rtol=1e-4, atol=1e-6)
    seen = output["metrics"]
    if case != "seq averaging":  # ours logs token means, whatever the aggregation
        assert metrics["papo_kl"] == pytest.approx(-seen["actor/kl_prcp_loss"], abs=1e-5)
    if "actor/ori_entropy_loss" in seen:
        assert metrics["papo_entropy"] == pytest.approx(seen["actor/ori_entropy_loss"], abs=1e-5)
        assert metrics["papo_entropy_masked"] == pytest.approx(seen["actor/aug_entropy_loss"], abs=1e-5)
    if "grad_aug_log_prob" in output:
        assert objective.gradients == (MASKED,) and masked.grad is not None
        torch.testing.assert_close(masked.grad, tensor(output["grad_aug_log_prob"]), rtol=1e-4, atol=1e-6)
    else:
        assert objective.gradients == () and masked.grad is None


# ---- engine mismatch


@pytest.mark.parametrize("case", sorted(load("verl_rollout_correction")["outputs"]))
def test_verl_rollout_correction(case: str) -> None:
    """Weights with and without normalisation, and rejection masks; a list of rejections is the and of all."""
    golden = load("verl_rollout_correction")
    old, engine = (tensor(golden["inputs"][name]) for name in ("old_log_prob", "rollout_log_prob"))
    mask, output = tensor(golden["inputs"]["mask"]).bool(), golden["outputs"][case]
    kind, what, bounds = case.split("|")[:3]
    if kind == "is":
        tis = Tis(level=what, cap=1.2, normalize="batch_norm=True" in case)
        factor = tis.factor(old, engine, mask)
        total, number = tis.totals(factor, mask)
        if tis.normalize:
            assert total / number == pytest.approx(output["metrics"]["rollout_is_batch_norm_factor"], abs=1e-6)
            factor = factor / (total / number)
        torch.testing.assert_close(factor, tensor(output["weights"]), rtol=1e-5, atol=1e-6)
        return
    rejections = []
    for name, bound in zip(what.split(","), bounds.split(","), strict=True):
        over = "token" if name.startswith("token") else name.split("_")[1]
        values = [float(value) for value in bound.split("_")]
        low, high = values if len(values) == 2 else (None, values[0])
        rejections.append(Rejection(statistic=name[-2:], over=over, low=low, high=high))
    kept = Tis(reject=tuple(rejections)).keep(old, engine, mask)
    assert torch.equal(kept, tensor(output["mask"]).bool())
    assert 1 - float(kept.sum() / mask.sum()) == pytest.approx(output["masked_fraction"], abs=1e-6)
