"""The core against numbers of the original implementations (`data/`, each file names its source)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmrl.advantage.group import DrAdvantage, GlobalAdvantage, GroupAdvantage, RlooAdvantage
from mmrl.advantage.shaping import Clamp
from mmrl.advantage.types import Advantage, Scored
from mmrl.objective.aggregate import Counts, Mode, count, weights
from mmrl.objective.batch import UnitBatch
from mmrl.objective.kl import KL, REFERENCE, estimate
from mmrl.objective.metrics import Metrics, finish
from mmrl.objective.objective import Objective
from mmrl.objective.surrogate import Clip
from mmrl.objective.window import WindowSteps
from mmrl.rollout import StepOutput

DATA = Path(__file__).parent / "data"


def load(name: str) -> dict[str, Any]:
    return json.loads((DATA / f"{name}.json").read_text())


def tensor(value: Any) -> Tensor:
    if isinstance(value, dict):
        return torch.tensor(value["data"], dtype=getattr(torch, value["dtype"])).reshape(value["shape"])
    return torch.tensor(value, dtype=torch.float32)


def no_divergence(p: StepOutput, q: StepOutput, norm: str) -> Tensor:
    raise AssertionError("not asked for")


# ---- advantages


def test_flow_grpo_stat_tracker() -> None:
    golden = load("flow_grpo__stat_tracker")
    group = np.unique(golden["inputs"]["prompts"], return_inverse=True)[1]
    scored = Scored(np.array(golden["inputs"]["rewards"]), group)
    for component, case in [
        (GlobalAdvantage(), "grpo_global_std_True"),
        (GroupAdvantage(scale="group", ddof=0), "grpo_global_std_False"),
    ]:
        np.testing.assert_allclose(component(scored), tensor(golden["outputs"][case]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("case", "component"),
    [
        ("grpo_std", GroupAdvantage(scale="group", eps=1e-6)),
        ("grpo_vectorized", GroupAdvantage(scale="group", eps=1e-6)),
        ("grpo_nostd_drgrpo", DrAdvantage()),
        ("rloo", RlooAdvantage()),
        ("rloo_vectorized", RlooAdvantage()),
    ],
)
def test_verl_advantages(case: str, component: Advantage) -> None:
    """verl spreads a sample's advantage over its mask; ours stay one number per sample until the loss."""
    golden = load("verl_advantages")
    inputs = golden["inputs"]
    advantage = component(Scored(np.array(inputs["rewards"]), np.array(inputs["group_index"])))
    expected = tensor(golden["outputs"][case]["advantages"])
    actual = torch.from_numpy(advantage).float()[:, None] * tensor(inputs["response_mask"])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


# ---- aggregation and the clipped loss

MODES: dict[str, Mode] = {
    "token-mean": "token_mean",
    "seq-mean-token-sum": "seq_mean_token_sum",
    "seq-mean-token-mean": "seq_mean_token_mean",
    "seq-mean-token-sum-norm": "seq_mean_token_sum_norm",
}


@pytest.mark.parametrize("name", MODES)
def test_verl_agg_loss(name: str) -> None:
    """`global_` multiplies by dp_size 2 because gradients are averaged there, and its sequence count is given.

    seq-mean-token-sum-norm differs from verl, which divides by a constant (or the padded length) and never by the number
    of sequences; ours is verl's divided by that number, so that the loss does not grow with the batch.
    """
    golden = load("verl_agg_loss")
    loss, mask = tensor(golden["inputs"]["loss_mat"]), tensor(golden["inputs"]["mask"]).bool()
    outputs, ranks = golden["outputs"][name], golden["params"]["global_"]["dp_size"]
    counts = Counts(golden["params"]["global_"]["batch_num_tokens"], golden["params"]["global_"]["global_batch_size"])
    local, whole = count(mask), (loss * weights(mask, MODES[name], counts, 20)).sum() * ranks
    if name == "seq-mean-token-sum-norm":
        padded = (loss * weights(mask, MODES[name], local, mask.shape[1])).sum() * local.sequences
        assert float(padded) == pytest.approx(outputs["local"], abs=1e-5)
        assert float(whole) * counts.sequences / ranks == pytest.approx(outputs["global_"], abs=1e-5)
        return
    assert float((loss * weights(mask, MODES[name], local)).sum()) == pytest.approx(outputs["local"], abs=1e-5)
    assert float(whole) == pytest.approx(outputs["global_"], abs=1e-5)


def run(
    objective: Objective, inputs: dict[str, Tensor], counts: Counts | None = None
) -> tuple[float, Tensor, dict[str, float]]:
    """Loss, gradient and metrics of the whole batch as one chunk."""
    mask = inputs["mask"].bool()
    log_prob = inputs["log_prob"].clone().requires_grad_()
    batch = UnitBatch(
        inputs["old_log_prob"],
        inputs["advantage"].expand_as(log_prob),
        objective.weights(mask, counts or count(mask)),
        inputs.get("step_weight", torch.ones_like(log_prob)),
    )
    metrics: Metrics
    loss, metrics = objective.loss(StepOutput(log_prob), batch, {}, no_divergence)
    loss.backward()
    assert log_prob.grad is not None
    return float(loss.detach()), log_prob.grad, finish(metrics)


@pytest.mark.parametrize(
    "case",
    [
        "vanilla|adv=seq|agg=token-mean",
        "vanilla|adv=seq|agg=token-mean|is_weights",
        "vanilla|adv=seq|agg=seq-mean-token-mean",
        "vanilla|adv=token|agg=token-mean",
        "vanilla|adv=token|agg=seq-mean-token-mean",
        "vanilla_dual_clip_active",
    ],
)
def test_verl_ppo_clip(case: str) -> None:
    """The weights of the rollout correction multiply the policy loss like step weights do.

    verl's `ppo_kl` is the k1 estimate, ours the k3 estimate of the same divergence, so it is not compared.
    """
    golden = load("verl_loss_ppo_clip")
    inputs, params, output = golden["inputs"], golden["params"], golden["outputs"][case]
    given = {name: tensor(inputs[name]) for name in ("mask", "old_log_prob", "log_prob")}
    given["advantage"] = tensor(inputs["adv_token" if "adv=token" in case else "adv_seq"])
    if "is_weights" in case:
        given["step_weight"] = tensor(inputs["rollout_is_weights"])
    if case == "vanilla_dual_clip_active":
        given |= {"log_prob": tensor(output["log_prob"]), "advantage": -torch.ones(1)}
    surrogate = Clip(low=params["clip_low"], high=params["clip_high"], dual=params["dual_clip_c"])
    mode: Mode = next((mode for name, mode in MODES.items() if f"agg={name}" in case.split("|")), "token_mean")
    loss, gradient, metrics = run(Objective(DrAdvantage(), surrogate, aggregate=mode), given)
    assert loss == pytest.approx(output["loss"], abs=1e-5)
    torch.testing.assert_close(gradient, tensor(output["grad_log_prob"]), rtol=1e-4, atol=1e-5)
    seen = output["metrics"]
    assert metrics["clip_low"] + metrics["clip_high"] == pytest.approx(seen["actor/pg_clipfrac"], abs=1e-5)
    assert metrics["clip_dual"] == pytest.approx(seen["actor/pg_clipfrac_lower"], abs=1e-5)


@pytest.mark.parametrize(
    ("case", "mode"),
    [
        ("grpo", "seq_mean_token_mean"),
        ("bnpo", "token_mean"),
        ("dr_grpo", "seq_mean_token_sum_norm"),
        ("dapo", "token_mean"),
    ],
)
def test_trl_grpo_losses(case: str, mode: Mode) -> None:
    """TRL divides by accumulation steps; ours count over the whole optimizer step: two such micro-batches give this.

    dapo counts the items of the generation batch, given as 120. The other cases of the file are not of this surrogate.
    """
    golden = load("trl_grpo_losses_a")
    inputs, params, output = golden["inputs"], golden["params"], golden["outputs"][case]
    given = {name: tensor(inputs[name]) for name in ("mask", "old_log_prob", "log_prob")}
    given["advantage"] = tensor(inputs["advantages"])[:, None]
    counts = count(given["mask"].bool())
    counts = counts + counts
    if case == "dapo":
        counts = Counts(params["num_items_in_batch"], counts.sequences)
    surrogate = Clip(low=params["epsilon_low"], high=params["epsilon_high"])
    objective = Objective(DrAdvantage(), surrogate, aggregate=mode, max_steps=params["max_completion_length"])
    loss, gradient, metrics = run(objective, given, counts)
    assert loss == pytest.approx(output["loss"], abs=1e-5)
    torch.testing.assert_close(gradient, tensor(output["grad_log_prob"]), rtol=1e-4, atol=1e-6)
    assert metrics["clip_low"] == pytest.approx(output["metrics"]["clip_ratio/low_mean"], abs=1e-5)
    assert metrics["clip_high"] == pytest.approx(output["metrics"]["clip_ratio/high_mean"], abs=1e-5)


# ---- KL


@pytest.mark.parametrize("estimator", ["k1", "abs", "k2", "k3"])
def test_verl_kl_penalty(estimator: Any) -> None:
    """`low_var_kl` is k3 under another name; `k3+` raises in the original and is tested against the formula elsewhere."""
    golden = load("verl_kl_penalty")
    log_prob = tensor(golden["inputs"]["log_prob"]).requires_grad_()
    value = estimate(log_prob, tensor(golden["inputs"]["ref_log_prob"]), estimator)
    value.sum().backward()
    torch.testing.assert_close(value.detach(), tensor(golden["outputs"][estimator]["value"]), rtol=1e-5, atol=1e-6)
    assert log_prob.grad is not None
    slope = tensor(golden["outputs"][estimator]["grad_logprob"])
    torch.testing.assert_close(log_prob.grad, slope, rtol=1e-5, atol=1e-6)


def test_flow_grpo_policy_and_kl_loss() -> None:
    """Clamped advantages, clip 1e-4, and beta times the exact KL between means, through the whole objective."""
    golden = load("flow_grpo__policy_kl_loss")
    inputs, params, outputs = golden["inputs"], golden["params"], golden["outputs"]
    std = tensor(inputs["std_dev_t"])

    def divergence(p: StepOutput, q: StepOutput, norm: str) -> Tensor:
        assert norm == "g2"
        return ((p.dist - q.dist) ** 2 / (2 * std**2)).mean(dim=(1, 2, 3))[:, None]

    objective = Objective(
        DrAdvantage(),
        Clip(low=params["clip_range"], high=params["clip_range"]),
        terms=(KL(coef=params["beta"], estimator="exact", norm="g2"),),
    )
    raw = np.array(inputs["advantages"])
    advantage = Clamp(max=params["adv_clip_max"])(raw, Scored(np.zeros(4), np.arange(4)))
    mask = torch.ones(4, 1, dtype=torch.bool)
    log_prob = tensor(inputs["log_prob"])[:, None].requires_grad_()
    mean = tensor(inputs["prev_sample_mean"]).requires_grad_()
    batch = UnitBatch(
        tensor(inputs["old_log_prob"])[:, None],
        torch.from_numpy(advantage).float()[:, None],
        objective.weights(mask, count(mask)),
        objective.step_weights(mask, None),
    )
    reference = StepOutput(torch.zeros(4, 1), dist=tensor(inputs["prev_sample_mean_ref"]))
    others = {REFERENCE: reference}
    loss, metrics = objective.loss(StepOutput(log_prob, dist=mean), batch, others, divergence)
    loss.backward()
    values = finish(metrics)
    assert loss.item() == pytest.approx(float(tensor(outputs["loss"])), abs=1e-5)
    assert values["kl"] == pytest.approx(float(tensor(outputs["kl_loss"])), rel=1e-5)
    policy = values["loss"] - params["beta"] * values["kl"]
    assert policy == pytest.approx(float(tensor(outputs["policy_loss"])), abs=1e-5)
    assert log_prob.grad is not None and mean.grad is not None
    torch.testing.assert_close(log_prob.grad[:, 0], tensor(outputs["grad_log_prob"]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mean.grad, tensor(outputs["grad_prev_sample_mean"]), rtol=1e-4, atol=1e-10)


# ---- windows

WINDOWS: dict[str, dict[str, Any]] = {
    "progressive_overlap1_iters3_rollback": {"every": 3},
    "progressive_nooverlap_iters5": {"every": 5, "stride": 4, "roll_back": False},
    "decay_overlap1": {"schedule": "decay", "every": 10},
    "exp_decay_overlap1": {"schedule": "exp_decay", "every": 5},
    "frozen_overlap0": {"every": 20, "stride": 0},
}


def windows(selector: WindowSteps, iterations: int, num_steps: int = 25) -> list[list[int]]:
    return [selector.before_rollout(num_steps, i, 0).nonzero()[:, 0].tolist() for i in range(iterations)]


@pytest.mark.parametrize("case", WINDOWS)
def test_mixgrpo_windows(case: str) -> None:
    """25 steps; the original is given 23 as its end, our default. Its empty windows, in which it trains nothing, are left
    out by ours: with roll_back the sweep starts again at once, without it the last window stays."""
    golden = load("mixgrpo__window_schedules")["outputs"][case]
    full = [window for window in golden if window]
    ours = windows(WindowSteps(size=4, **WINDOWS[case]), len(golden))
    assert ours[: len(full)] == full
    if case == "progressive_nooverlap_iters5":
        assert ours[len(full) :] == [full[-1]] * (len(golden) - len(full))
    assert all(ours)


def test_mixgrpo_random_window_has_the_same_places() -> None:
    """Another generator, so other draws; and the original starts its first iteration at 0 without a draw."""
    golden = load("mixgrpo__window_schedules")["outputs"]["random_seed_is_iteration"]
    ours = windows(WindowSteps(size=4, schedule="random"), 400)
    assert {len(window) for window in golden} == {len(window) for window in ours} == {4}
    assert {window[0] for window in ours} == set(range(20)) >= {window[0] for window in golden}
