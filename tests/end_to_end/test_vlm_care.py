"""GRPO-CARE through the command: what makes it different is in the log, and a run that ends without a word goes on to the
last bit, the slow copy of the weights included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.end_to_end.helpers import metrics, state, weights
from tests.end_to_end.test_vlm_resume import Gone, after_step
from tests.end_to_end.vlm_helpers import mmrl_inside

pytestmark = pytest.mark.slow

SMALL = [
    "run.threads=1", "run.seed=1", "checkpoint.every=2", "evaluation.prompts.number=200", "evaluation.every=null",
    "evaluation.samples_per_prompt=1", "evaluation.pictures=1", "evaluation.sampling.max_new_tokens=48",
    "stages.warm.steps=50", "stages.warm.batch_size=8", "stages.warm.micro_batch=8", "stages.warm.optimizer.lr=5e-3",
    "stages.rl.steps=4", "stages.rl.prompts.number=200", "stages.rl.prompts_per_step=2", "stages.rl.group_size=4",
    "stages.rl.rollout.max_new_tokens=48", "stages.rl.optimizer.lr=1e-4", "stages.rl.optimizer.warmup_steps=0",
    "stages.rl.rewards.right.mode=format",
]  # fmt: skip
"""Right is who keeps to the form: that is learned in seconds, to see is not."""
FOLLOW = "{name: grpo_care, decay: 0.5, every: 2, accuracy: right}"
CARE = [f"stages.rl.objective.shaping=[{FOLLOW}, {{name: rac, accuracy: right, every: 2}}]"]


def train(run: Path, *more: str) -> Path:
    mmrl_inside("train", "methods/grpo_care", f"run.dir={run}", *SMALL, *CARE, *more)
    return run


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("care") / "straight")


def test_consistency_is_measured_and_rewarded(straight: Path) -> None:
    lines = [line for line in metrics(straight) if line["stage"] == "rl"]
    steps, evaluations = lines[1:-1], [lines[0], lines[-1]]
    assert len(steps) == 4 and all(0 < line["measured/consistency"] < 1 for line in steps)
    assert all(line["reward_shaped"] > line["reward"] for line in steps), (
        "some right answer is as likely as its group's mean"
    )
    assert [("measured/rac" in line, "measured/rac/right" in line) for line in steps] == [
        (True, True),
        (False, False),
    ] * 2
    for line in evaluations:
        assert 0 <= line["eval/measured/rac"] <= 1 and 0 <= line["eval/measured/rac/right"] <= 1
        assert "eval/measured/consistency" not in line


def test_the_slow_copy_follows_and_is_kept(straight: Path) -> None:
    found = weights(straight)
    slow = {key.removeprefix("frozen/slow."): value for key, value in found.items() if key.startswith("frozen/slow.")}
    trained = {key.removeprefix("trainable/"): value for key, value in found.items() if key.startswith("trainable/")}
    assert slow.keys() == trained.keys()
    assert any(not torch.equal(slow[name], trained[name]) for name in slow)


def test_run_that_ends_without_a_word_continues_bit_identically(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> None:
        raise Gone

    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Gone):
        after_step(patch, 50 + 3, gone)
        train(run)
    mmrl_inside("train", "methods/grpo_care", f"run.dir={run}", "--resume")
    assert metrics(run) == metrics(straight) and state(run) == state(straight)
    got, want = weights(run), weights(straight)
    assert got.keys() == want.keys() and [key for key in want if not torch.equal(got[key], want[key])] == []
