"""A token policy in two gloo processes computes what it computes in one.

Answers are of different lengths, a group is split between the processes (9 samples, 3 prompts), and a third of the prompts
has no picture, so that one process may hold more rows without a masked view than the other.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.end_to_end.helpers import metrics, mmrl
from tests.end_to_end.vlm_helpers import mmrl_inside, weights_at, write_vlm_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of the same run, in one process and in two."""
    folder = tmp_path_factory.mktemp("vlm")
    config = write_vlm_config(folder)
    options = ["stages.warm.ema=null", "stages.rl.ema=null", "checkpoint.every=9"]
    mmrl_inside("train", config, f"run.dir={folder / 'one'}", *options)
    mmrl("train", config, f"run.dir={folder / 'two'}", *options, "--nproc", 2)
    return folder / "one", folder / "two"


def test_the_run_is_ragged_and_mixed(runs: tuple[Path, Path]) -> None:
    """Otherwise the other tests would show little."""
    steps = [line for line in metrics(runs[0]) if "ratio" in line]
    assert len(steps) == 2 and all(line["grad_norm"] > 0.1 and line["papo_entropy_masked"] > 0 for line in steps)
    assert any(0 < line["rollout/finished"] < 1 for line in steps), "answers with and without an end"
    assert all(line["rollout/tokens"] % 1 > 0 for line in steps), "answers of different lengths"
    assert all(line["group_std"] > 0 for line in steps)


def test_every_line_of_metrics_is_the_same(runs: tuple[Path, Path]) -> None:
    one, two = (metrics(run) for run in runs)
    assert [line.keys() for line in one] == [line.keys() for line in two]
    for expected, line in zip(one, two, strict=True):
        for key, value in expected.items():
            if key in ("grad_norm", "loss", "papo_entropy", "papo_entropy_masked", "kl"):
                assert line[key] == pytest.approx(value, rel=1e-4, abs=1e-6), (key, expected["total"])
            elif isinstance(value, float):
                assert line[key] == pytest.approx(value, rel=1e-3, abs=2e-5), (key, expected["total"])


@pytest.mark.parametrize("total", [5, 7], ids=["after_warm", "after_rl"])
def test_weights_and_gradients_are_the_same(runs: tuple[Path, Path], total: int) -> None:
    """The optimizer's first moment is the mean of the gradients so far."""
    one, two = (weights_at(run, total) for run in runs)
    assert one.keys() == two.keys()
    moments = [key for key in one if key.endswith("exp_avg")]
    assert len(moments) > 50
    for key, expected in one.items():
        if key.startswith("trainable/"):
            torch.testing.assert_close(two[key], expected, rtol=1e-4, atol=5e-6, msg=key)
    for key in moments:
        scale = float(one[key].abs().max())
        torch.testing.assert_close(two[key], one[key], rtol=0, atol=2e-4 * scale + 1e-9, msg=key)
