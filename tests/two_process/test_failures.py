"""A reward that fails on one process only is masked on both, as one process that scores everything masks it, or ends both."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.helpers import metrics, mmrl, write_config
from tests.two_process.test_equal_to_one import same_within

pytestmark = pytest.mark.slow

LAST_FAILS = """
import os


def brightness(samples):
    values = [float(sample.images[0].mean()) / 255 for sample in samples]
    if int(os.environ.get("RANK", 0)) == int(os.environ.get("WORLD_SIZE", 1)) - 1:
        values[-1] = float("nan")  # the last sample of a step, whoever scores it
    return values


def darkness(samples):
    return [0.0] * len(samples)
"""


def test_a_failure_on_one_process_is_masked_on_both(tmp_path: Path) -> None:
    runs = []
    for processes in (1, 2):
        config = write_config(tmp_path / str(processes))
        (config.parent / "brightness.py").write_text(LAST_FAILS)
        runs.append(config.parent / "run")
        more = ("stages.rl.failures.share=0.2", "stages.rl.steps=2", f"run.dir={runs[-1]}", "--nproc", processes)
        done = mmrl("train", config, *more, OMP_NUM_THREADS="1")
        assert "nan on sample 2 of prompt" in done.stdout + done.stderr
    same_within(runs[1], runs[0])
    steps = [line for line in metrics(runs[1]) if "failed" in line]
    assert len(steps) == 2
    for line in steps:
        assert line["failed"] == 1 and line["reward/mean/failed"] == 1


@pytest.mark.parametrize(
    ("setting", "said"),
    [("rewards.mean.on_failure=raise", "on_failure: raise"), ("failures.share=0", "of 50 steps")],
)
def test_a_failure_on_one_process_ends_both(setting: str, said: str, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    (tmp_path / "brightness.py").write_text(LAST_FAILS)
    more = ("stages.warm=null", f"stages.rl.{setting}", "stages.rl.steps=1", "evaluation=null", "--nproc", 2)
    done = mmrl("train", config, f"run.dir={tmp_path / 'run'}", *more, check=False, OMP_NUM_THREADS="1")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert said in done.stderr and "nan on sample 2 of prompt" in done.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
