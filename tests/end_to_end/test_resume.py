"""kill -9 at any moment, then --resume: bit-identical to a run that was never stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.end_to_end.helpers import metrics, mmrl, start, state, wait_for_lines, weights, write_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[1, 2], ids=["one_process", "two_processes"])
def straight(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """(config, folder of an uninterrupted run, number of processes)."""
    folder = tmp_path_factory.mktemp(f"straight{request.param}")
    config = write_config(folder)
    mmrl("train", config, f"run.dir={folder / 'run'}", "--nproc", request.param)
    return config, folder / "run", request.param


@pytest.mark.parametrize("lines", [2, 6], ids=["in_the_warm_start", "in_rl"])
def test_killed_run_continues_bit_identically(straight: tuple[Path, Path, int], tmp_path: Path, lines: int) -> None:
    config, reference, processes = straight
    if processes > 1 and lines < 4:
        pytest.skip("the warm start is covered with one process")
    run = tmp_path / "run"
    process = start("train", config, f"run.dir={run}", "--nproc", processes)
    wait_for_lines(run / "metrics.jsonl", lines, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    mmrl("train", config, f"run.dir={run}", "--nproc", processes, "--resume")
    same_run(run, reference)


def same_run(run: Path, reference: Path) -> None:
    assert metrics(run) == metrics(reference)
    got, want = weights(run), weights(reference)
    assert got.keys() == want.keys() and len(want) > 50
    assert [key for key in want if not torch.equal(got[key], want[key])] == []
    assert state(run) == state(reference)


def test_interrupt_stops_after_a_checkpoint_and_resumes(straight: tuple[Path, Path, int], tmp_path: Path) -> None:
    config, reference, processes = straight
    run = tmp_path / "run"
    process = start("train", config, f"run.dir={run}", "--nproc", processes)
    wait_for_lines(run / "metrics.jsonl", 5, process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=120) == 130
    assert (run / "report.html").is_file()
    mmrl("train", config, f"run.dir={run}", "--nproc", processes, "--resume")
    same_run(run, reference)


def test_resume_of_a_finished_run_changes_nothing(straight: tuple[Path, Path, int]) -> None:
    config, reference, processes = straight
    if processes > 1:
        pytest.skip("one process is enough")
    before = (metrics(reference), weights(reference))
    mmrl("train", config, f"run.dir={reference}", "--nproc", processes, "--resume")
    assert metrics(reference) == before[0]
    assert all(torch.equal(weights(reference)[key], value) for key, value in before[1].items())


def test_resume_with_another_config_is_refused(straight: tuple[Path, Path, int]) -> None:
    config, reference, _processes = straight
    done = mmrl("train", config, f"run.dir={reference}", "stages.rl.optimizer.lr=1e-2", "--resume", check=False)
    assert done.returncode == 2
    assert "stages.rl.optimizer.lr: was 0.001, is 0.01" in done.stderr


def test_a_second_run_in_the_same_folder_is_refused(straight: tuple[Path, Path, int]) -> None:
    config, reference, _ = straight
    done = mmrl("train", config, f"run.dir={reference}", check=False)
    assert done.returncode == 2 and "--resume" in done.stderr and "Traceback" not in done.stderr


def test_half_written_checkpoint_is_not_loaded(straight: tuple[Path, Path, int], tmp_path: Path) -> None:
    config, reference, processes = straight
    if processes > 1:
        pytest.skip("one process is enough")
    run = tmp_path / "run"
    process = start("train", config, f"run.dir={run}", "--nproc", 1)
    wait_for_lines(run / "metrics.jsonl", 6, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    half = run / "checkpoints" / ".tmp_step_999999_1"
    half.mkdir()
    (half / "trainable.safetensors").write_bytes(b"half")
    mmrl("train", config, f"run.dir={run}", "--nproc", 1, "--resume")
    same_run(run, reference)


def test_resume_needs_no_overrides_and_tells_what_the_config_says_otherwise(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    run = tmp_path / "run"
    mmrl("train", config, f"run.dir={run}", "stages.warm=null", "stages.rl.steps=2", "--nproc", 2)
    done = mmrl("train", config, f"run.dir={run}", "--resume")
    assert "goes on with its own config.yaml" in done.stderr and "stages.rl.steps" in done.stderr
    assert "0 steps" in done.stderr, "the finished run has nothing left to do"
