"""A token policy that is killed or stopped and resumed is bit-identical to one that was never stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.end_to_end.helpers import metrics, mmrl, start, state, wait_for_lines, weights
from tests.end_to_end.vlm_helpers import TINY_VLM, mmrl_inside, write_vlm_config

pytestmark = pytest.mark.slow

REFILL = """\
  refill:
    kind: rl
    steps: 4
    prompts: *mixed
    prompts_per_step: 2
    group_size: 3
    rollout: {max_new_tokens: 10}
    rewards: {fourths: {name: "parts.py:fourths"}}
    objective:
      advantage: {name: group, scale: group}
      selection: {name: signal}
      surrogate: {name: clip, low: 0.2, high: 0.28}
    curriculum: {refill: {max_rounds: 3}}
    optimizer: {lr: 1e-3}
    ema: {decay: 0.9}
evaluation:
"""
"""Dynamic sampling as a third stage."""

LINES = ["warm"] * 5 + ["rl"] * 4 + ["refill"] * 6
"""Stages of the lines of metrics, the evaluations before and after included."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vlm_config(tmp_path_factory.mktemp("vlm"), TINY_VLM.replace("evaluation:\n", REFILL))


@pytest.fixture(scope="module")
def one(config: Path) -> Path:
    """An uninterrupted run in one process."""
    mmrl_inside("train", config, f"run.dir={config.parent / 'one'}")
    return config.parent / "one"


@pytest.fixture(scope="module")
def two(config: Path) -> Path:
    """An uninterrupted run in two processes."""
    mmrl("train", config, f"run.dir={config.parent / 'two'}", "--nproc", 2)
    return config.parent / "two"


def killed(config: Path, run: Path, lines: int, processes: int) -> None:
    """Start a run and kill it as soon as `lines` lines of metrics are there."""
    process = start("train", config, f"run.dir={run}", "--nproc", processes)
    wait_for_lines(run / "metrics.jsonl", lines, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "summary.json").exists(), "the run was over before it could be killed"


def same_run(run: Path, reference: Path) -> None:
    assert metrics(run) == metrics(reference)
    got, want = weights(run), weights(reference)
    assert got.keys() == want.keys() and {key.split("/")[0] for key in want} >= {"trainable", "optimizer", "ema"}
    assert [key for key in want if not torch.equal(got[key], want[key])] == []
    assert state(run) == state(reference)


def test_the_runs_go_through_every_stage_and_refill(one: Path) -> None:
    """Otherwise the other tests would show little."""
    lines = metrics(one)
    assert [line["stage"] for line in lines] == LINES
    refilled = [line["refill/rounds"] for line in lines if "refill/rounds" in line]
    assert len(refilled) == 4 and max(refilled) > 1, "a group without a signal was drawn again"
    assert state(one)["work"]["sampler"]["index"] == sum(refilled)


def test_killed_run_continues_bit_identically(config: Path, one: Path, tmp_path: Path) -> None:
    killed(config, tmp_path / "run", LINES.index("rl") + 3, processes=1)
    mmrl_inside("train", config, f"run.dir={tmp_path / 'run'}", "--resume")
    same_run(tmp_path / "run", one)


def test_two_killed_processes_continue_bit_identically(config: Path, two: Path, tmp_path: Path) -> None:
    """In dynamic sampling, where the sampler is ahead of the steps."""
    killed(config, tmp_path / "run", LINES.index("refill") + 4, processes=2)
    mmrl("train", config, f"run.dir={tmp_path / 'run'}", "--nproc", 2, "--resume")
    same_run(tmp_path / "run", two)


class Gone(BaseException):
    """Stands for a machine that goes down: nothing is written any more."""


@pytest.mark.parametrize("total", [3, 10], ids=["in_the_warm_start", "in_dynamic_sampling"])
def test_run_that_ends_without_a_word_continues_bit_identically(
    config: Path, one: Path, tmp_path: Path, total: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> None:
        raise Gone

    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Gone):
        after_step(patch, total, gone)
        mmrl_inside("train", config, f"run.dir={run}")
    assert len(metrics(run)) > state(run)["train"]["metric_lines"], "lines after the last checkpoint are to be dropped"
    mmrl_inside("train", config, f"run.dir={run}", "--resume")
    same_run(run, one)


@pytest.mark.parametrize("total", [4, 6], ids=["in_the_warm_start", "in_rl"])
def test_run_stopped_by_an_interrupt_continues_bit_identically(
    config: Path, one: Path, tmp_path: Path, total: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run writes a checkpoint after its step, says how to go on, and ends with 130."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        after_step(patch, total, lambda: os.kill(os.getpid(), signal.SIGINT))
        stopped = mmrl_inside("train", config, f"run.dir={run}", check=False)
    assert stopped.code == 130 and f"stopped after step {total}" in stopped.stderr and "--resume" in stopped.stderr
    assert (run / "report.html").is_file() and (run / "checkpoints" / f"step_{total:06d}").is_dir()
    mmrl_inside("train", config, f"run.dir={run}", "--resume")
    same_run(run, one)


def after_step(patch: pytest.MonkeyPatch, total: int, action: Callable[[], None]) -> None:
    """Let something happen once, when step `total` of a run has been logged."""
    from mmrl.trainer import Trainer

    log, done = Trainer._log, []

    def logged(self: Trainer, *arguments: Any) -> None:
        log(self, *arguments)
        if self.state.total == total and not done:
            done.append(total)
            action()

    patch.setattr(Trainer, "_log", logged)
