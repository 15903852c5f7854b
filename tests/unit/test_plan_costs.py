"""The network passes that `mmrl check` prints, held to those that the training loop makes, for the methods that ship."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_policy import FakeGroup

from mmrl.check import cost
from mmrl.config.resolve import Resolved, load
from mmrl.meter import Meter
from mmrl.reward import RewardSet
from mmrl.rollout import Scores
from mmrl.stages.rl import RLWork

METHODS = Path(__file__).parents[2] / "configs" / "methods"
SMALL = ["policy.layers=1", "policy.heads=2", "policy.head_dim=16", "stages.rl.prompts_per_step=1"]
CASES: dict[str, tuple[str, list[str], tuple[int, ...]]] = {
    "all steps": ("flow_grpo", [], (0,)),
    "guidance": ("flow_grpo", ["stages.rl.rollout.guidance_scale=2"], (0,)),
    "shared start": ("flow_grpo", ["stages.rl.rollout.start_noise=shared"], (0,)),
    "random window": ("flow_grpo_fast", [], (0, 1, 2, 3)),
    "a random share of the steps": ("dancegrpo", [], (0,)),
    "best of N": ("dancegrpo_best_of_n", [], (0,)),
    "progressive window": ("mixgrpo", ["stages.rl.objective.steps.select.every=1"], (0, 1, 2, 3, 4)),
    "Flash": ("mixgrpo_flash", ["stages.rl.objective.steps.select.every=1"], (0, 1, 2, 3, 4)),
    "fan-out": ("tempflow", [], (0,)),
    "branch": ("branchgrpo", [], (0, 30)),
    "Branch-Mix": ("branchgrpo_mix", [], (0,)),
    "finished samples": ("nft", [], (0,)),
}
"""Method, overrides, and the iterations that are run."""


@pytest.fixture(autouse=True)
def _random_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that every group has a signal, whatever is drawn."""
    rng = np.random.default_rng(0)

    def score(self: RewardSet, samples: list[Any], *_: Any) -> Scores:
        shape = len(samples), len(self.names)
        return Scores(self.names, rng.normal(size=shape), np.zeros(shape, dtype=np.int64))

    monkeypatch.setattr(RewardSet, "score", score)


def resolved_of(method: str, overrides: list[str]) -> Resolved:
    return load(str(METHODS / f"{method}.yaml"), [*SMALL, *overrides])


def printed(text: str) -> list[tuple[float, float]]:
    """Lowest and highest of rollout and update."""
    found = re.search(r"([\d.]+)(?: to ([\d.]+))? rollout, ([\d.]+)(?: to ([\d.]+))? update", text)
    assert found is not None, text
    low_r, high_r, low_u, high_u = (None if one is None else float(one) for one in found.groups())
    return [(low_r, high_r or low_r), (low_u, high_u or low_u)]  # type: ignore[list-item]


class Counted:
    """A tiny model whose rows through the network are counted."""

    def __init__(self, resolved: Resolved) -> None:
        self.stage = next(stage for stage in resolved.stages if stage.name == "rl")
        self.policy: Any = resolved.policy
        self.policy.load("cpu")
        self.policy.prepare(self.stage.train, any(model == "reference" for _, model in self.stage.objective.needs))
        self.work = RLWork(self.stage, self.policy, FakeGroup(), resolved.config.run.seed, lambda line: None)  # type: ignore[arg-type]
        self.work.parity_checked = True
        self.rows = 0
        predict = self.policy.adapter.predict

        def counted(x: torch.Tensor, *rest: Any) -> torch.Tensor:
            self.rows += len(x)
            return predict(x, *rest)

        self.policy.adapter.predict = counted

    def iteration(self, number: int) -> tuple[float, float]:
        """Rows per image of the rollout, and of what follows until the weights would move."""
        self.rows, meter, before = 0, Meter(), 0
        rollout = self.work.collector._rollout

        def watched(*options: Any) -> Any:
            nonlocal before
            found = rollout(*options)
            before = self.rows
            return found

        self.work.collector._rollout = watched  # type: ignore[method-assign]
        for update in self.work.updates(number, meter):
            for loss in update or ():
                loss.backward()
        self.work.collector._rollout = rollout  # type: ignore[method-assign]
        images = self.work.samples_per_step
        return before / images, (self.rows - before) / images


@pytest.mark.parametrize("name", CASES)
def test_printed_passes_are_those_that_are_made(name: str) -> None:
    method, overrides, iterations = CASES[name]
    resolved = resolved_of(method, [*overrides, f"stages.rl.steps={max(iterations) + 1}"])
    one = Counted(resolved)
    bounds = printed(cost(one.stage, resolved))
    made = [one.iteration(number) for number in iterations]
    for (low, high), found in zip(bounds, zip(*made, strict=True), strict=True):
        assert min(found) >= low - 1e-3 and max(found) <= high + 1e-3, (bounds, made)
        if len(iterations) == max(iterations) + 1:
            assert (min(found), max(found)) == pytest.approx((low, high), abs=1e-3)


WRITES = """
policy: {name: tiny_qwen3vl}
stages:
  rl:
    kind: rl
    steps: 2
    prompts: {name: puzzles, mixture: [{kind: count_shapes, level: 1, size: 56}], number: 4}
    prompts_per_step: 2
    group_size: 4
    rollout: {max_new_tokens: 3}
    rewards: {right: {name: puzzle}}
    objective:
      advantage: {name: group, scale: group}
      aggregate: token_mean
    optimizer: {lr: 1e-4}
"""


@pytest.mark.parametrize(
    ("part", "measuring", "said"),
    [
        ("surrogate={name: clip}", 0, "3 rollout, 1 update"),
        ("surrogate={name: archer}", 1, "3 rollout, up to 1 measuring, 1 update"),
        ("steps.select={name: entropy, fraction: 0.5}", 1, "3 rollout, up to 1 measuring, 1 update"),
        ("shaping=[{name: vogue, start: 0.5, end: 0.5}]", 2.5, "3 rollout, up to 2.5 measuring, 1 update"),
        ("shaping=[{name: vogue, start: 1, end: 0, token: 0}]", 3, "3 rollout, up to 3 measuring, 1 update"),
    ],
)
def test_passes_that_measure_are_printed(tmp_path: Path, part: str, measuring: float, said: str) -> None:
    """Replays before the update, per answer, held to those that are made in the first step."""
    (tmp_path / "writes.yaml").write_text(WRITES)
    resolved = load(str(tmp_path / "writes.yaml"), [f"stages.rl.objective.{part}"])
    stage, policy = resolved.stages[0], resolved.policy
    assert cost(stage, resolved).endswith(said)  # type: ignore[arg-type]
    policy.load("cpu")
    policy.prepare(stage.train, False)
    work = RLWork(stage, policy, FakeGroup(), 0, lambda line: None)  # type: ignore[arg-type]
    work.parity_checked = True
    rows, replay = 0, policy.replay

    def counted(rollout: Any, chunk: Any, *rest: Any) -> Any:
        nonlocal rows
        rows += len(chunk.rows)
        return replay(rollout, chunk, *rest)

    object.__setattr__(policy, "replay", counted)
    next(iter(work.updates(0, Meter())))
    assert rows / work.samples_per_step == measuring
