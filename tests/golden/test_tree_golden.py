"""Trees and solver against numbers of the original implementations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmrl.advantage.branch import Fusion, by_depth, fused
from mmrl.generative.solver import dpm_step

DATA = json.loads((Path(__file__).parent / "data" / "branchgrpo__reward_fusion.json").read_text())
TREE, LEAVES = DATA["inputs"]["tree"], DATA["inputs"]["leaf_ids_in_order"]
DEPTH = max(node["depth"] for node in TREE.values())


def ways() -> list[list[str]]:
    """The nodes of every leaf, from depth 1 on."""
    found = []
    for leaf in LEAVES:
        way = [leaf]
        while TREE[way[0]]["depth"] > 1:
            way.insert(0, TREE[way[0]]["parent"])
        found.append(way)
    return found


def arrays() -> tuple[Any, Any, Any]:
    ids = {name: number for number, name in enumerate(TREE)}
    node = np.array([[ids[name] for name in way] for way in ways()])
    log_prob = np.array([[TREE[name]["log_prob"] for name in way] for way in ways()])
    return np.array(DATA["inputs"]["leaf_rewards"]["data"]), node, log_prob


@pytest.mark.parametrize(("fusion", "key"), [("uniform", "uniform"), ("path", "prob_weighted")])
def test_fusion_and_advantages_of_branchgrpo(fusion: Fusion, key: str) -> None:
    reward, node, log_prob = arrays()
    value = fused(reward, node, log_prob, fusion)
    advantage = by_depth(value, np.zeros(len(reward), dtype=np.int64), node)
    wanted = DATA["outputs"][key]
    for row, way in enumerate(ways()):
        for k, name in enumerate(way):
            assert value[row, k] == pytest.approx(wanted["node_reward"][name], abs=1e-6)
            assert advantage[row, k] == pytest.approx(wanted["node_advantage"][name], abs=2e-5)


def test_equal_rewards_have_no_advantage() -> None:
    _, node, log_prob = arrays()
    value = fused(np.full(len(node), 0.3), node, log_prob, "path")
    assert not by_depth(value, np.zeros(len(node), dtype=np.int64), node).any()


DPM = json.loads((Path(__file__).parent / "data" / "mixgrpo__dpm_updates.json").read_text())


@pytest.mark.parametrize("name", [name for name in DPM["outputs"] if "heun" not in name])
def test_dpm_solver_steps(name: str) -> None:
    """Midpoint and first-order steps; the Heun form and the stochastic forms of the file are not offered."""
    order, index = name.split("_order")[0], int(name.rpartition("_")[2])
    given = {key: torch.tensor(value["data"]).reshape(value["shape"]) for key, value in DPM["inputs"].items()}
    sigmas = given["sigmas"].tolist()
    found = dpm_step(
        given["sample"],
        given["x0_pred_current"],
        given["x0_pred_previous"] if order == "second" else None,
        sigmas[index - 1] if order == "second" else None,
        sigmas[index],
        sigmas[index + 1],
    )
    wanted = DPM["outputs"][name]["ode_x"]
    torch.testing.assert_close(found, torch.tensor(wanted["data"]).reshape(wanted["shape"]), rtol=1e-4, atol=1e-5)
