"""Runs of the real command on a very small config."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

TINY = """
# A run of seconds: every part of the house, nothing learned.
policy: {name: tiny_sd3, layers: 2, heads: 1}
run: {seed: 3, threads: 1}
checkpoint: {every: 2, keep_last: 2}
stages:
  warm:
    kind: supervised
    steps: 3
    batch_size: 5
    micro_batch: 3
    examples: {name: shapes}
    train: {parts: [transformer, text_encoders]}
    optimizer: {lr: 1e-3}
    ema: {decay: 0.9}
  rl:
    kind: rl
    steps: 5
    prompts: {name: shapes, split: train}
    prompts_per_step: 3
    group_size: 3
    micro_batch: 7
    rollout: {num_steps: 3, sampler: {kind: flow_sde, level: 0.7}, start_noise: shared, micro_batch: 4}
    rewards:
      mean: {name: "brightness.py:brightness"}
      jpeg: {name: jpeg_compressibility, weight: 0.1}
    objective:
      advantage: {name: group, scale: group}
      surrogate: {name: clip, low: 1e-3, high: 1e-3}
      terms: [{name: kl, coef: 0.1, estimator: exact, norm: s2}]
    optimizer: {lr: 1e-3, eps: 1e-5}
    ema: {decay: 0.9}
evaluation:
  prompts: {name: list, items: [two red circles, a blue square left of a green triangle]}
  samples_per_prompt: 2
  every: 2
  pictures: 2
  sampling: {num_steps: 3}
  rewards:
    dark: {name: "brightness.py:darkness"}
"""

REWARD = """
def brightness(samples):
    return [float(sample.images[0].mean()) / 255 for sample in samples]


def darkness(samples):
    return [1 - value for value in brightness(samples)]
"""


def write_config(folder: Path, text: str = TINY) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "brightness.py").write_text(REWARD)
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


def mmrl(
    *arguments: object, cwd: Path | None = None, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command; returns the finished process with its output as text."""
    done = subprocess.run(
        [sys.executable, "-m", "mmrl", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if check and done.returncode:
        raise AssertionError(
            f"mmrl {' '.join(map(str, arguments))} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
    return done


def start(*arguments: object) -> subprocess.Popen[bytes]:
    """Start the command in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "mmrl", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait_for_lines(file: Path, count: int, process: subprocess.Popen[bytes], seconds: float = 300) -> None:
    """Wait until `file` has at least `count` lines."""
    deadline = time.monotonic() + seconds
    while not file.is_file() or file.read_text().count("\n") < count:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "the run is too slow"
        time.sleep(0.01)


def metrics(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the figures that no two runs share (seconds, memory)."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def newest(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("step_*"))[-1]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint: weights, optimizer, moving average, reference."""
    return {
        f"{file.stem}/{key}": value
        for file in sorted(newest(run).glob("*.safetensors"))
        for key, value in load_file(file).items()
    }


def state(run: Path) -> dict[str, Any]:
    """The newest checkpoint's state without seconds."""
    found = json.loads((newest(run) / "state.json").read_text())
    for key in ("seconds", "training_seconds"):
        found["train"].pop(key)
    found["train"]["stages_done"] = [
        {"stage": done["stage"], "steps": done["steps"]} for done in found["train"]["stages_done"]
    ]
    return found
