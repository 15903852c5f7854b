"""Two gloo processes compute what one process computes; uneven groups included (9 samples, 3 prompts)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.end_to_end.helpers import metrics, mmrl, weights, write_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("one")
    config = write_config(folder)
    mmrl("train", config, f"run.dir={folder / 'run'}", "--nproc", 1)
    return config, folder / "run"


def same_within(run: Path, reference: Path) -> None:
    got, want = metrics(run), metrics(reference)
    assert len(got) == len(want)
    for line, expected in zip(got, want, strict=True):
        assert line.keys() == expected.keys()
        for key, value in expected.items():
            if key == "rollout/nfe":  # a group that is cut runs on both processes what its samples share
                assert value <= line[key] < value + 1
            elif isinstance(value, float):
                assert line[key] == pytest.approx(value, rel=2e-3, abs=2e-5), (key, expected["total"])
    left, right = weights(run), weights(reference)
    assert left.keys() == right.keys()
    for key, value in right.items():
        if key.startswith(("trainable/", "ema/")):
            torch.testing.assert_close(left[key], value, rtol=1e-3, atol=1e-4, msg=key)


def test_nproc_two(one: tuple[Path, Path], tmp_path: Path) -> None:
    config, reference = one
    mmrl("train", config, f"run.dir={tmp_path / 'run'}", "--nproc", 2)
    same_within(tmp_path / "run", reference)


def test_plain_torchrun(one: tuple[Path, Path], tmp_path: Path) -> None:
    config, reference = one
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "mmrl"]
    subprocess.run(
        [*command, "train", str(config), f"run.dir={tmp_path / 'run'}"], check=True, timeout=600, capture_output=True
    )
    same_within(tmp_path / "run", reference)


def test_accelerate_launch_on_cpu_is_refused_because_it_starts_one_process(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "mmrl"]
    done = subprocess.run(
        [*command, "train", str(config), f"run.dir={tmp_path / 'run'}"], timeout=600, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "2 processes were asked for" in done.stderr and "but 1 started" in done.stderr and "--nproc 2" in done.stderr


def test_wrong_number_of_processes_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    done = mmrl("train", config, f"run.dir={tmp_path / 'run'}", "run.num_processes=3", check=False)
    assert done.returncode == 2 and "3 processes were asked for (run.num_processes), but 1 started" in done.stderr


def test_reward_that_fails_on_one_rank_is_a_decision_of_all(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    (tmp_path / "brightness.py").write_text(
        "import os\n\n\ndef brightness(samples):\n"
        "    if os.environ.get('RANK') == '1':\n        raise RuntimeError('scorer lost')\n"
        "    return [float(sample.images[0].mean()) / 255 for sample in samples]\n\n\n"
        "def darkness(samples):\n    return [0.0] * len(samples)\n"
    )
    done = mmrl(
        "train",
        config,
        f"run.dir={tmp_path / 'run'}",
        "--nproc",
        2,
        "stages.rl.failures.window=4",
        check=False,
        OMP_NUM_THREADS="1",
    )
    assert done.returncode == 2
    assert "scorer lost" in done.stderr and done.stderr.count("more than the budget") == 1
    assert "Traceback" not in done.stderr
    assert os.path.exists(tmp_path / "run" / "report.html")
