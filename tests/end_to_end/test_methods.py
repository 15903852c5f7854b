"""Every shipped method for generators runs through the real command on the embedded model and changes its weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmrl.catalogue import catalogue
from mmrl.config import load
from tests.end_to_end.helpers import metrics
from tests.end_to_end.vlm_helpers import mmrl_inside

pytestmark = pytest.mark.slow


GENERATIVE = [row["config"] for row in catalogue("methods")["methods"] if row["family"] == "generative"]


SMALL = {
    "rl": ("prompts_per_step=2", "rewards={jpeg: {name: jpeg_compressibility}}"),
    "direct": ("batch_size=4",),
    "supervised": ("batch_size=4",),
}


@pytest.mark.parametrize("name", GENERATIVE)
def test_method_trains_two_steps(name: str, tmp_path: Path) -> None:
    *before, stage = load(name).stages
    small = [f"stages.{stage.name}.{one}" for one in ("steps=2", *SMALL[stage.section.kind])]
    first = [f"stages.{one.name}=null" for one in before]  # what is learned first is not needed here
    mmrl_inside(
        "train",
        name,
        f"run.dir={tmp_path / 'run'}",
        *first,
        *small,
        "evaluation.samples_per_prompt=1",
        "run.threads=1",
    )
    steps = [line for line in metrics(tmp_path / "run") if line["stage"] == stage.name and "grad_norm" in line]
    assert len(steps) == 2 and all(line["grad_norm"] > 0 for line in steps)
    if stage.section.kind == "rl":
        assert all(line["failed"] == 0 for line in steps)
    if "ratio" in steps[0]:  # losses on finished samples have none
        assert steps[0]["ratio"] == pytest.approx(1.0, abs=1e-2)
