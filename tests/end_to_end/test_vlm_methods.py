"""Every shipped method for reasoners passes the check and trains two steps through the real command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmrl.catalogue import catalogue
from mmrl.config.source import read
from tests.end_to_end.helpers import metrics
from tests.end_to_end.vlm_helpers import mmrl_inside

pytestmark = pytest.mark.slow

METHODS = [row["config"] for row in catalogue("methods")["methods"] if row["family"] == "vlm"]

SMALL = {
    "supervised": {"steps": 12, "batch_size": 8, "micro_batch": 8, "optimizer.lr": 5e-3, "optimizer.warmup_steps": 0},
    "preference": {"steps": 2, "batch_size": 4, "micro_batch": 4, "optimizer.warmup_steps": 0},
    "rl": {"steps": 2, "prompts_per_step": 2, "group_size": 4, "micro_batch": 8, "prompts.number": 40,
           "rollout.max_new_tokens": 12, "optimizer.warmup_steps": 0, "optimizer.lr": 1e-6},
}  # fmt: skip
"""Stages of seconds; the rate of `rl` keeps the second update of a rollout inside the narrowest clip."""


def small(name: str, *kinds: str) -> list[str]:
    """Overrides that leave the stages of these kinds in a config, and little of them."""
    stages: dict[str, Any] = read(name).tree["stages"]
    found = ["run.threads=1", "run.seed=1", "evaluation.prompts.number=40", "evaluation.samples_per_prompt=1",
             "evaluation.pictures=1", "evaluation.sampling.max_new_tokens=8"]  # fmt: skip
    for stage, section in stages.items():
        if section["kind"] not in kinds:
            found.append(f"stages.{stage}=null")
            continue
        found += [f"stages.{stage}.{key}={value}" for key, value in SMALL[section["kind"]].items()]
        if (section.get("rewards") or {}).get("right") is not None:  # right answers are rare at first, the form is not
            found.append(f"stages.{stage}.rewards.right.mode=format")
    return found


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for a policy that has learned the form of an answer in a few steps, so that rewards differ."""
    folder = tmp_path_factory.mktemp("started")
    mmrl_inside("train", "methods/vlm_grpo", f"run.dir={folder / 'run'}", *small("methods/vlm_grpo", "supervised"))
    mmrl_inside("export", folder / "run", "--to", "transformers", "--out", folder / "model")
    return ["policy.name=vlm", f"policy.path={folder / 'model'}", "policy.dtype=float32"]


def test_there_are_methods() -> None:
    assert len(METHODS) >= 10 and "methods/vlm_grpo" in METHODS


@pytest.mark.parametrize("name", METHODS)
def test_method_trains_two_steps(name: str, started: list[str], tmp_path: Path) -> None:
    assert "tiny_qwen3vl" in mmrl_inside("check", name).stdout
    mmrl_inside("train", name, f"run.dir={tmp_path / 'run'}", *small(name, "rl", "preference"), *started)
    steps = [line for line in metrics(tmp_path / "run") if "grad_norm" in line]
    assert len(steps) == 2 and all(line["grad_norm"] > 0 and line.get("failed", 0) == 0 for line in steps)
    assert all(line.get("rollout/tokens", 2) > 1 for line in steps)
