"""Every shipped method for generators runs through the real command on the embedded model and changes its weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmrl.catalogue import catalogue
from tests.end_to_end.helpers import metrics, mmrl

pytestmark = pytest.mark.slow


GENERATIVE = [row["config"] for row in catalogue("methods")["methods"] if row["family"] == "generative"]


@pytest.mark.parametrize("name", GENERATIVE)
def test_method_trains_two_steps(name: str, tmp_path: Path) -> None:
    small = ["stages.rl.steps=2", "stages.rl.prompts_per_step=2", "evaluation.samples_per_prompt=1", "run.threads=1"]
    first = [] if name.endswith("ddpo") else ["stages.warm=null"]  # ddpo has no warm start
    mmrl(
        "train",
        name,
        f"run.dir={tmp_path / 'run'}",
        *first,
        *small,
        "stages.rl.rewards={jpeg: {name: jpeg_compressibility}}",
    )
    steps = [line for line in metrics(tmp_path / "run") if line["stage"] == "rl" and "grad_norm" in line]
    assert len(steps) == 2 and all(line["grad_norm"] > 0 and line["failed"] == 0 for line in steps)
    if "ratio" in steps[0]:  # losses on finished samples have none
        assert steps[0]["ratio"] == pytest.approx(1.0, abs=1e-2)
