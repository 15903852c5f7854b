"""Every shipped method runs through the real command on the embedded models and changes their weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmrl.config.resolve import load
from mmrl.config.source import shipped
from tests.end_to_end.helpers import metrics, mmrl

pytestmark = pytest.mark.slow

LENGTH = "def length(samples):\n    return [float(len(sample.text)) for sample in samples]\n"
"""A reward that an untrained model's answers differ in."""


def methods(family: str) -> list[str]:
    found = [name for name in shipped() if name.startswith("methods/")]
    return [
        name for name in found if (method := load(name, read_data=False).config.method) and method.family == family
    ]


@pytest.mark.parametrize("name", methods("generative"))
def test_method_trains_a_generator_two_steps(name: str, tmp_path: Path) -> None:
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
    check(tmp_path / "run", 1e-2)


@pytest.mark.parametrize("name", methods("vlm"))
def test_method_trains_a_reasoner_two_steps(name: str, tmp_path: Path) -> None:
    (tmp_path / "length.py").write_text(LENGTH)
    mmrl(
        "train",
        name,
        f"run.dir={tmp_path / 'run'}",
        "stages.warm=null",
        "stages.rl.steps=2",
        "stages.rl.prompts_per_step=2",
        "stages.rl.group_size=4",
        "stages.rl.optimizer.warmup_steps=0",
        f"stages.rl.rewards.length={{name: {tmp_path / 'length.py'}:length}}",
        "evaluation=null",
        "run.threads=1",
    )
    check(tmp_path / "run", 0.1)


def check(run: Path, tolerance: float) -> None:
    """Two steps, both with a gradient; the ratio starts at 1 (and moves where a step makes two updates)."""
    steps = [line for line in metrics(run) if "ratio" in line]
    assert len(steps) == 2 and all(line["grad_norm"] > 0 and line["failed"] == 0 for line in steps)
    assert steps[0]["ratio"] == pytest.approx(1.0, abs=tolerance)
