"""Every output of the generative goldens is matched or named with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmrl.advantage.group import standardised

DATA = Path(__file__).parent / "data"

ALL = "*"
MATCHED: dict[str, set[str]] = {
    "branchgrpo__reward_fusion": {ALL},
    "dancegrpo__flux_step": {ALL},
    "ddpo__ddim_step__epsilon": {ALL},
    "diffusionnft__loss_beta1.0_all": {"policy_loss", "kl_div_loss", "grad_forward_prediction"},
    "flow_grpo__policy_kl_loss": {ALL},
    "flow_grpo__sde_step__given_prev": {ALL},
    "flow_grpo__stat_tracker": {"grpo_global_std_True", "grpo_global_std_False", "grpo_time_repeated_2_steps"},
    "flux__pack_unpack": {ALL},
    "mixgrpo__dpm_updates": {ALL},
    "mixgrpo__window_schedules": {ALL},
    "prefgrpo__win_rate_think": {ALL},
    "promptrl__lm_loss": {"advantages", "completion_mask", "loss", "grad_logits"},
    "schedules__shift": {ALL},
    "verl_omni__grpo_guard_loss": {ALL},
    "verl_omni__sde_step__cps": {ALL},
}
INSIDE = "a part of the loss that is matched, with its gradient"
HEUN = "the Heun form of the solver, which no recipe uses"
LEFT_OUT: dict[tuple[str, str], str] = {
    ("diffusionnft__loss_beta1.0_all", "r"): INSIDE,
    ("diffusionnft__loss_beta1.0_all", "positive_loss"): INSIDE,
    ("diffusionnft__loss_beta1.0_all", "negative_loss"): INSIDE,
    ("diffusionnft__loss_beta1.0_all", "total_loss"): "the sum of the two losses that are matched",
    ("flow_grpo__stat_tracker", "rwr"): "the rewards themselves: no advantage, a baseline of the paper",
    ("flow_grpo__stat_tracker", "sft"): "trains the best of a group alone, a baseline of the paper",
    (
        "flow_grpo__stat_tracker",
        "dpo",
    ): "marks the best and the worst of a group; that is selection best_of_n with keep 2",
    ("promptrl__lm_loss", "mean_kl"): INSIDE,
    **{("mixgrpo__dpm_updates", f"second_order_heun_index_{k}"): HEUN for k in (1, 5, 20, 23)},
}


def load(name: str) -> dict[str, Any]:
    return json.loads((DATA / f"{name}.json").read_text())


@pytest.mark.parametrize("name", MATCHED)
def test_every_output_is_matched_or_named(name: str) -> None:
    found = set(load(name)["outputs"])
    left_out = {case for file, case in LEFT_OUT if file == name}
    matched = found - left_out if ALL in MATCHED[name] else MATCHED[name]
    assert found == matched | left_out and not matched & left_out


def test_every_file_is_read_by_another_test() -> None:
    tests = Path(__file__).parents[1]
    text = "".join(path.read_text() for path in tests.rglob("test_*.py") if path != Path(__file__))
    assert [name for name in MATCHED if f'"{name}' not in text] == []


def test_one_advantage_serves_all_steps_of_a_sample() -> None:
    golden = load("flow_grpo__stat_tracker")
    group = np.unique(golden["inputs"]["prompts"], return_inverse=True)[1]
    found = standardised(np.array(golden["inputs"]["rewards"]), group, "group", ddof=0)
    wanted = np.array(golden["outputs"]["grpo_time_repeated_2_steps"]["data"]).reshape(12, 2)
    np.testing.assert_allclose(np.repeat(found[:, None], 2, 1), wanted, rtol=1e-9, atol=1e-12)


def test_advantages_of_promptrl() -> None:
    golden = load("promptrl__lm_loss")
    rewards = golden["inputs"].get("rewards")
    assert rewards is not None
    values = np.array(rewards["data"] if isinstance(rewards, dict) else rewards, dtype=np.float64)
    found = standardised(values, np.zeros(len(values), dtype=np.int64), "group", ddof=0)
    np.testing.assert_allclose(found, golden["outputs"]["advantages"]["data"], rtol=1e-4, atol=1e-5)
