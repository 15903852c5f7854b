"""Losses on finished samples, ratio losses that read means, direct stages and SOAR through the real command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.end_to_end.helpers import metrics, state, weights
from tests.end_to_end.vlm_helpers import mmrl_inside

pytestmark = pytest.mark.slow

RL = """
policy: {name: tiny_sd3, layers: 1, heads: 1}
run: {seed: 3, threads: 1}
stages:
  rl:
    kind: rl
    steps: 2
    prompts: {name: shapes, split: train}
    prompts_per_step: 2
    group_size: 4
    micro_batch: 8
    updates_per_rollout: 2
    rollout: {num_steps: 4, sampler: {kind: ode}}
    rewards: {red: {name: colour, colour: [1, 0, 0]}}
    objective:
      advantage: {name: group, scale: group}
      surrogate: {name: nft, times: 3}
      terms: [{name: kl, coef: 1e-4, estimator: exact, norm: v}]
    optimizer: {lr: 1e-3}
"""

DIRECT = """
policy: {name: tiny_sd3, layers: 1, heads: 1}
run: {seed: 3, threads: 1}
stages:
  direct:
    kind: direct
    steps: 12
    prompts: {name: shapes, split: train}
    batch_size: 6
    micro_batch: 4
    sampling: {num_steps: 4}
    rewards: {red: {name: colour, colour: [1, 0, 0]}}
    optimizer: {lr: 1e-3}
evaluation:
  prompts: {name: list, items: [two red circles]}
  samples_per_prompt: 2
  pictures: 0
  sampling: {num_steps: 4}
"""

SOAR = """
policy: {name: tiny_sd3, layers: 1, heads: 1}
run: {seed: 3, threads: 1}
stages:
  sft:
    kind: supervised
    steps: 2
    batch_size: 4
    micro_batch: 3
    examples: {name: shapes}
    train: {noise: logit_normal, caption_dropout: 0.1, soar: {draws: 2}}
    optimizer: {lr: 1e-3}
"""

SURROGATES = {
    "awm": "{name: awm, times: 3, t_min: 0.05}",
    "nft": "{name: nft, times: 3}",
    "dgpo": "{name: dgpo, times: 3, t_min: 0.05, clip: 0.1}",
    "crd": "{name: crd, times: 2, t_min: 0.05, reference_guidance: 3.0}",
    "diffusion_dpo": "{name: diffusion_dpo, times: 2, t_min: 0.05, old: ema, decay: 0, rate: null, every: 2}",
    "guard": "{name: guard}",
    "flow_dppo": "{name: flow_dppo}",
}


def config(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", SURROGATES)
def test_two_steps(name: str, tmp_path: Path) -> None:
    more = []
    if name in ("guard", "flow_dppo"):
        more = ["stages.rl.rollout={num_steps: 4}"]
    if name == "diffusion_dpo":
        more = ["stages.rl.objective.selection={name: best_of_n, keep: 2}"]
    path = config(tmp_path, RL)
    done = mmrl_inside(
        "train", path, f"run.dir={tmp_path / 'run'}", f"stages.rl.objective.surrogate={SURROGATES[name]}", *more
    )
    lines = [line for line in metrics(tmp_path / "run") if "grad_norm" in line]
    assert len(lines) == 2 and all(line["grad_norm"] > 0 and line["failed"] == 0 for line in lines)
    assert ("ratio" in lines[0]) == (name in ("awm", "dgpo", "guard", "flow_dppo"))
    assert ("start-up parity" in done.stdout + done.stderr) == (name in ("guard", "flow_dppo"))


def test_a_run_that_was_cut_off_equals_one_that_was_not(tmp_path: Path) -> None:
    """DiffusionNFT: the slow copy that draws is part of a checkpoint."""
    path = config(tmp_path, RL)
    keep = ["checkpoint.every=1"]
    mmrl_inside("train", path, f"run.dir={tmp_path / 'whole'}", "stages.rl.steps=4", *keep)
    whole = weights(tmp_path / "whole")
    assert any("slow" in name for name in whole)
    mmrl_inside("train", path, f"run.dir={tmp_path / 'cut'}", "stages.rl.steps=4", *keep)
    for folder in sorted((tmp_path / "cut" / "checkpoints").glob("step_*"))[-1:]:
        for file in sorted(folder.iterdir()):
            file.unlink()
        folder.rmdir()
    mmrl_inside("train", path, f"run.dir={tmp_path / 'cut'}", "stages.rl.steps=4", *keep, "--resume")
    resumed = weights(tmp_path / "cut")
    assert state(tmp_path / "whole")["train"]["total"] == state(tmp_path / "cut")["train"]["total"] == 4
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_what_a_whole_group_needs_is_said_at_once(tmp_path: Path) -> None:
    path = config(tmp_path, RL)
    some = ["stages.rl.objective.surrogate={name: dgpo, times: 2}", "stages.rl.micro_batch=3"]
    more = ["stages.rl.prompts_per_step=3", "run.num_processes=2", "stages.rl.old_log_probs=rollout"]
    said = " ".join(mmrl_inside("check", path, *some, *more, check=False).stderr.split())
    for line in (
        "surrogate dgpo needs whole groups in a micro-batch, got 3; use 4 or more",
        "surrogate dgpo needs whole groups, and 3 groups do not divide into 2 updates; use 4",
        "surrogate dgpo needs whole groups, and 3 groups do not divide into 2 processes; use 4",
        "surrogate dgpo sees finished samples, of which a rollout says no log-prob; use auto",
    ):
        assert line in said
    fine = mmrl_inside("check", path)
    assert "forward passes per image: 4 rollout, 9 update" in fine.stdout
    refused = mmrl_inside("check", path, "policy={name: tiny_sd15}", check=False)
    assert "surrogate nft needs a forward process" in " ".join(refused.stderr.split())


@pytest.mark.parametrize("more", ["method: draft", "method: refl", "penalty: 0.02"])
def test_a_direct_stage_raises_its_reward(more: str, tmp_path: Path) -> None:
    path = config(tmp_path, DIRECT.replace("    batch_size", f"    last: 2\n    {more}\n    batch_size"))
    mmrl_inside("train", path, f"run.dir={tmp_path / 'run'}")
    before, *lines, after = metrics(tmp_path / "run")
    assert len(lines) == 12 and all(line["grad_norm"] > 0 for line in lines)
    assert after["eval/red"] > before["eval/red"] + 0.1
    assert lines[0]["loss"] == pytest.approx(-lines[0]["reward/red"], rel=1e-5)
    if "penalty" in more:
        assert lines[0]["distance"] == pytest.approx(0.0, abs=1e-6) and lines[-1]["distance"] > 0.1


def test_a_reward_without_a_gradient_is_refused(tmp_path: Path) -> None:
    path = config(tmp_path, DIRECT)
    some = ["stages.direct.rewards={jpeg: {name: jpeg_compressibility}}", "stages.direct.last=9"]
    said = " ".join(mmrl_inside("check", path, *some, check=False).stderr.split())
    assert "jpeg_compressibility has no gradient, which a direct stage needs; these have one: " in said
    assert "colour" in said and "the last 9 steps of 4" in said
    writer = ["policy={name: tiny_qwen3vl}", "stages.direct.sampling={}", "evaluation=null"]
    said = " ".join(mmrl_inside("check", path, *writer, check=False).stderr.split())
    assert "this policy draws none" in said


def test_soar_trains(tmp_path: Path) -> None:
    path = config(tmp_path, SOAR)
    mmrl_inside("train", path, f"run.dir={tmp_path / 'run'}")
    mmrl_inside("train", path, f"run.dir={tmp_path / 'plain'}", "stages.sft.train.soar=null")
    mmrl_inside("train", path, f"run.dir={tmp_path / 'zero'}", "stages.sft.train.soar.lam=0")
    run, plain, zero = (metrics(tmp_path / name) for name in ("run", "plain", "zero"))
    assert plain == zero and len(run) == 2 and run[0]["loss"] != plain[0]["loss"]
