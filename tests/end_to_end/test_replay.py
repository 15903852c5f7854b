"""Samples kept by two processes, one run of them killed and resumed, under the run's own rewards and under others."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mmrl.cli import app
from mmrl.replay import kept
from tests.end_to_end.helpers import mmrl, start, wait_for_lines, write_config

pytestmark = pytest.mark.slow

CONFIG = """
policy: {name: tiny_sd3, layers: 1, heads: 1}
run: {seed: 3, threads: 1}
checkpoint: {every: 4, keep_last: 1}
stages:
  rl:
    kind: rl
    steps: 12
    prompts: {name: shapes, split: train}
    prompts_per_step: 3
    group_size: 4
    rollout: {num_steps: 2, sampler: {kind: flow_sde, level: 0.7}}
    rollout_parts: 2
    keep_samples: {every: 5}
    rewards:
      mean: {name: "brightness.py:brightness"}
      jpeg: {name: jpeg_compressibility, weight: 0.1, then: [{name: rank}]}
    objective:
      combine: advantages
      advantage: {name: group, scale: batch}
      shaping: [{name: clamp, max: 2}]
      surrogate: {name: clip, low: 1e-3, high: 1e-3}
    optimizer: {lr: 1e-3, eps: 1e-5}
"""


def replayed(run: Path, file: Path) -> tuple[str, dict[str, Any]]:
    done = CliRunner().invoke(app, ["reward", "replay", str(run), "--rewards", str(file)])
    assert done.exit_code == 0, done.output
    return done.output, json.loads((run / "replay" / file.stem / "replay.json").read_text())


def test_a_resumed_run_of_two_processes_is_replayed(tmp_path: Path) -> None:
    config, run = write_config(tmp_path, CONFIG), tmp_path / "run"
    process = start("train", config, f"run.dir={run}", "--nproc", 2)
    wait_for_lines(run / "metrics.jsonl", 6, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (run / "kept" / "rl" / ".tmp_step_000010" / "media").mkdir(parents=True)  # a write that was cut off
    mmrl("train", config, f"run.dir={run}", "--nproc", 2, "--resume")
    found = kept.steps(run / "kept" / "rl")
    assert list(found) == [1, 5, 10] and sorted(path.name for path in (run / "kept" / "rl").iterdir()) == [
        "step_000001",
        "step_000005",
        "step_000010",
    ]
    one = kept.read(found[5])
    assert one.whole and one.group.tolist() == [k // 4 for k in range(12)]
    assert len(np.unique(one.place, axis=0)) == 4, "two parts on two ranks each"
    assert all(sample.images[0].shape == (24, 24, 3) and sample.prompt.target for sample in one.samples)
    assert "seconds/keep" in json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["time"]

    said, numbers = replayed(run, run / "config.yaml")
    assert "same as stored: 72 of 72 values" in said and "same as stored: 36 of 36 advantages" in said
    assert numbers["steps"]["all"]["pearson"] == pytest.approx(1) and numbers["steps"]["all"]["moved"] == 0

    other = tmp_path / "other.yaml"
    other.write_text(
        'rewards: {mean: {name: "brightness.py:darkness"}}\nobjective: {advantage: {name: dr}, combine: rewards}\n'
    )
    said, numbers = replayed(run, other)
    assert "same as stored: 0 of 36 values" in said and numbers["steps"]["all"]["flipped"] > 0.4
    for line in (run / "replay" / "other" / "replay.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert record["new"]["values"]["mean"] == 1 - record["old"]["values"]["mean"]
