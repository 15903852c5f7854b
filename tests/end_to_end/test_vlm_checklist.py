"""Sub-questions in a run of the real command: prompts of a file and puzzles, answers that are scored, trained and gate their prompt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.end_to_end.helpers import metrics
from tests.end_to_end.vlm_helpers import mmrl_inside, weights_at, write_vlm_config

pytestmark = pytest.mark.slow

RUN = """
policy: {name: tiny_qwen3vl}
run: {seed: 3, threads: 1}
checkpoint: {every: 9}
stages:
  rl:
    kind: rl
    steps: 2
    prompts: {name: jsonl, path: prompts.jsonl}
    prompts_per_step: 3
    group_size: 3
    micro_batch: 4
    rollout: {max_new_tokens: 8, micro_batch: 4}
    rewards:
      letters: {name: "parts.py:letters"}
      fourths: {name: "parts.py:fourths", weight: 0}
    curriculum: {checklist: {questions: 2, group_size: 2}}
    objective:
      advantage: {name: dr}
      shaping: [{name: checklist_gate, accuracy: fourths, threshold: 1.0}]
    optimizer: {lr: 1e-3, eps: 1e-5}
"""


def write_run(folder: Path) -> Path:
    """Six prompts with a picture each; all but the first have sub-questions, one of them with its own place for the picture."""
    path = write_vlm_config(folder, RUN)
    lines = []
    for number in range(6):
        pixels = np.full((56, 56, 3), 40 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        listed = [{"question": "How many? <image>", "answer": number}, {"question": "Grey?", "answer": "yes"},
                  {"question": "Round?", "answer": "no"}]  # fmt: skip
        meta = {"checklist": listed} if number else {}
        lines.append({"text": "What is it?", "id": f"p{number}", "media": f"{number}.png", "target": "x", "meta": meta})
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_sub_questions_gate_their_prompts(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    gate = "stages.rl.objective.shaping.0.threshold"
    runs = {}
    for name, threshold in (("closed", 1.0), ("open", 0.0), ("again", 1.0)):
        runs[name] = tmp_path / name
        mmrl_inside("train", config, f"run.dir={runs[name]}", f"{gate}={threshold}")
    closed, opened = ([line for line in metrics(runs[name]) if "ratio" in line] for name in ("closed", "open"))
    assert len(closed) == len(opened) == 2
    first, free = closed[0], opened[0]
    # the first step draws the same with and without a gate: 3 prompts x 3 and their sub-questions
    assert (
        first["reward/fourths"] == free["reward/fourths"] and first["checklist/accuracy"] == free["checklist/accuracy"]
    )
    assert first["checklist/unknown"] == 0 and free["checklist/gated"] == 0
    assert first["checklist/gated"] > 0, "an untrained model rarely answers in a multiple of four letters"
    assert first["advantage/abs_mean"] < free["advantage/abs_mean"]
    assert all(line["grad_norm"] > 0 for line in (*closed, *opened))
    weights = {name: weights_at(run, 2) for name, run in runs.items()}
    assert all(torch.equal(value, weights["again"][key]) for key, value in weights["closed"].items())
    assert not all(torch.equal(value, weights["open"][key]) for key, value in weights["closed"].items())
