"""Which config a resumed run goes on with, and what may be said again."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmrl.config.dump import dump
from mmrl.config.resolve import load
from mmrl.errors import ConfigError, RunError
from mmrl.folder import RunFolder
from mmrl.run import stored_config

CONFIG = """
policy: {name: tiny_sd3}
run: {dir: mine}
stages:
  warm:
    kind: supervised
    steps: 2
    batch_size: 4
    examples: {name: shapes}
    optimizer: {lr: 1.0e-3}
  rl:
    kind: rl
    steps: 1
    prompts_per_step: 2
    group_size: 2
    optimizer: {lr: 1.0e-3}
    prompts: {name: shapes}
    rewards: {own: {name: "own.py:own"}, dense: {name: shapes}}
    rollout: {num_steps: 4}
    objective: {advantage: {name: group, scale: group}, surrogate: {name: clip, low: 1.0e-4, high: 1.0e-4}}
evaluation: {prompts: {name: shapes}, rewards: {strict: {name: shapes, mode: strict}}}
"""

BEGAN = (
    "stages.warm=null",
    "stages.rl.rewards.dense=null",
    "evaluation=null",
    "stages.rl.objective.surrogate.low=0.1",
    "stages.rl.objective.surrogate.name=reinforce",
    "stages.rl.rewards.own.name=own.py:other",
)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The config of a run that began with `BEGAN` in another working directory than the config's."""
    (tmp_path / "at").mkdir()
    (tmp_path / "at" / "own.py").write_text("def own(samples):\n    return [1.0 for _ in samples]\n\n\nother = own\n")
    (tmp_path / "at" / "run.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    RunFolder(Path("mine")).create(dump(load("at/run.yaml", BEGAN)), {})
    return "at/run.yaml"


def test_what_a_run_was_begun_with_may_be_said_again(config: str) -> None:
    own, unused = stored_config(config, BEGAN)
    assert unused == [] and list(own.config.stages) == ["rl"] and own.evaluation is None
    assert dump(own) | {"run": {}} == dump(load(config, BEGAN)) | {"run": {}}


def test_what_may_differ_is_set_anew(config: str) -> None:
    own, _ = stored_config(config, [*BEGAN, "run.threads=3", "checkpoint={keep_last: 7}"])
    assert own.config.run.threads == 3 and own.config.checkpoint.keep_last == 7
    assert stored_config(config, ["run={threads: 2, dir: mine}"])[0].config.run.threads == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.rl.steps=5", "stages.rl.steps: was 1, is 5"),
        ("stages.rl.rewards.own.weight=2", "stages.rl.rewards.own.weight: was 1.0, is 2"),
        ("stages.rl.objective.surrogate.name=guard", "surrogate.name: was 'reinforce', is 'guard'"),
    ],
)
def test_what_would_make_another_run_of_it_is_refused(config: str, override: str, said: str) -> None:
    with pytest.raises(RunError, match=said):
        stored_config(config, ["stages.warm=null", override])


def test_a_removed_stage_that_the_run_has_is_told_and_one_that_neither_has_is_a_slip(config: str) -> None:
    RunFolder(Path("mine")).config.unlink()
    RunFolder(Path("mine")).create(dump(load(config, [])), {})
    with pytest.raises(RunError, match=r"stages\.warm\.batch_size: was 4, is None"):
        stored_config(config, ["stages.warm=null"])
    with pytest.raises(ConfigError, match=r"stages\.wram=null: got None; expected a mapping"):
        stored_config(config, ["stages.wram=null"])
