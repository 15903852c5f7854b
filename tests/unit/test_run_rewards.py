"""A run says which models scored, and does not go on with others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import PrivateAttr
from typer.testing import CliRunner

from mmrl.cli import app
from mmrl.components import build
from mmrl.config.dump import dump
from mmrl.config.resolve import load
from mmrl.distributed import Group
from mmrl.errors import RunError, UserError
from mmrl.folder import RunFolder, claim_next, unclaim
from mmrl.launch import others
from mmrl.reward import Reward
from mmrl.reward.fingerprint import fingerprint
from mmrl.run import choose_folder, record_rewards, set_up_rewards, train

CONFIG = """
policy: {name: tiny_sd3}
stages:
  rl:
    kind: rl
    steps: 1
    prompts_per_step: 2
    group_size: 2
    optimizer: {lr: 1.0e-3}
    prompts: {name: shapes}
    rewards: {own: {name: "own.py:own"}, dense: {name: shapes}}
    rollout: {num_steps: 4}
    objective: {advantage: {name: group, scale: group}}
evaluation: {prompts: {name: shapes}, rewards: {strict: {name: shapes, mode: strict}}}
"""


def resolved(folder: Path, value: float) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "own.py").write_text(f"def own(samples):\n    return [{value} for _ in samples]\n")
    (folder / "run.yaml").write_text(CONFIG)
    found = load(str(folder / "run.yaml"), read_data=False)
    set_up_rewards(found, torch.device("cpu"))
    return found


def test_a_run_names_its_rewards_and_is_not_resumed_with_others(tmp_path: Path) -> None:
    folder, group = RunFolder(tmp_path / "run"), Group("cpu")
    folder.path.mkdir()
    first, same, other = (resolved(tmp_path / name, value) for name, value in (("a", 1.0), ("b", 1.0), ("c", 2.0)))
    record_rewards(first, folder, group, resume=False)
    found = json.loads(folder.rewards.read_text())
    assert list(found) == ["stages.rl.rewards.own", "stages.rl.rewards.dense", "evaluation.rewards.strict"]
    assert found["stages.rl.rewards.dense"]["class"] == "mmrl.data.shapes.reward:ShapeReward"
    assert all(len(one["sha256"]) == 64 for one in found.values())
    record_rewards(first, folder, group, resume=True)
    with pytest.raises(
        RunError, match=r"^stages\.rl\.rewards\.own: the code, the options or the weights are not those"
    ):
        record_rewards(other, folder, group, resume=True)
    assert json.loads(folder.rewards.read_text()) == found
    record_rewards(other, folder, group, resume=False)
    assert json.loads(folder.rewards.read_text()) != found
    mine = [fingerprint(one.stages[0].rewards["own"].reward) for one in (first, same, other)]
    assert mine[0] == mine[1] != mine[2]  # a file that moved is the same, one that changed is not
    assert fingerprint(first.stages[0].rewards["dense"].reward) == fingerprint(same.stages[0].rewards["dense"].reward)


OWN = """
from mmrl.reward import Reward


class Own(Reward):
    def setup(self, device):
        {setup}

    def score(self, samples):
        return [0.0 for _ in samples]
"""


def written(folder: Path, setup: str) -> None:
    """A config in `folder` with a reward that does `setup` when it is loaded."""
    (folder / "own.py").write_text(OWN.format(setup=setup))
    (folder / "run.yaml").write_text(CONFIG.replace("own.py:own", "own.py:Own"))


def test_a_run_whose_rewards_cannot_load_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "open('no such weights')")
    monkeypatch.chdir(tmp_path)
    for folder in ([], ["run.dir=mine"]):
        with pytest.raises(UserError, match="cannot be loaded: FileNotFoundError"):
            train("run.yaml", ["run.device=cpu", *folder], resume=False)
        assert not list(tmp_path.glob("runs/run/*")) and not Path("mine").exists()


def test_a_launcher_whose_processes_do_not_start_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, "pass")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    asked: list[list[str]] = []
    monkeypatch.setattr("mmrl.launch.run", lambda arguments, processes: asked.append(list(arguments)) or 2)
    assert CliRunner().invoke(app, ["train", "run.yaml", "--nproc", "2"]).exit_code == 2
    assert asked == [["train", "run.yaml", "run.num_processes=2"]] and not Path("runs").exists()


def test_a_launcher_tells_every_reason_once() -> None:
    about = {"0": "error: rank 1: no weights", "1": "error: no weights", "2": "error: rank 1: no weights"}
    assert others(about) == []
    assert others({"0": "error: a", "1": "error: b", "2": "error: b", "3": "interrupted"}) == [
        "rank 1: error: b",
        "rank 3: interrupted",
    ]
    assert others({"1": "error: a"}) == ["rank 1: error: a"]


def test_a_folder_in_use_is_told_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "raise AssertionError('loaded beside the run that works there')")
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path / "mine")
    folder.create(dump(load("run.yaml", ["run.device=cpu", "run.dir=mine"])), {})
    held = folder.lock()
    with pytest.raises(UserError, match="in use by a running process"):
        train("run.yaml", ["run.dir=mine"], resume=True)
    held.close()


def test_a_run_that_ended_while_another_loaded_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(
        tmp_path, "import pathlib; pathlib.Path('mine').mkdir(); pathlib.Path('mine/metrics.jsonl').write_text('{}\\n')"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="mine holds a run already; continue it with --resume"):
        train("run.yaml", ["run.device=cpu", "run.dir=mine"], resume=False)
    assert Path("mine/metrics.jsonl").read_text() == "{}\n" and not Path("mine/config.yaml").exists()


def test_a_folder_in_which_no_run_began_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed while it loads leaves one."""
    written(tmp_path, "pass")
    monkeypatch.chdir(tmp_path)
    own = load("run.yaml", [])
    first = claim_next(Path("runs/run"))
    with pytest.raises(UserError, match="nothing to resume: no run in"):
        choose_folder(own, resume=True)
    RunFolder(first).create(dump(own), {})
    claim_next(Path("runs/run"))
    assert choose_folder(own, resume=True) == first


def test_a_folder_that_holds_anything_is_never_given_back(tmp_path: Path) -> None:
    full, empty = claim_next(tmp_path), claim_next(tmp_path)
    (full / "note").write_text("mine")
    for folder in (full, empty, tmp_path / "absent"):
        unclaim(folder)
    assert full.is_dir() and not empty.exists()


class Weighs(Reward):
    _layer: Any = PrivateAttr(None)
    _elsewhere: str = PrivateAttr("")

    def elsewhere(self) -> str:
        return self._elsewhere

    def score(self, samples: Any) -> list[float]:
        return [0.0 for _ in samples]


class Files(Weighs):
    file: Path


class Texts(Weighs):
    words: set[str]


def test_weights_options_and_a_model_elsewhere_are_part_of_a_fingerprint() -> None:
    reward = Weighs()
    reward._layer = torch.nn.Linear(2, 1)
    before = fingerprint(reward)
    assert fingerprint(reward) == before
    with torch.no_grad():
        reward._layer.weight += 1e-3
    changed = fingerprint(reward)
    reward._elsewhere = "abc"
    assert len({before, changed, fingerprint(reward)}) == 3
    texts = Texts(words={"b", "a", "c"}), Texts(words={"c", "b", "a"})
    assert fingerprint(texts[0]) == fingerprint(texts[1]) != fingerprint(Texts(words={"a"}))
    paths = [Files(file=Path(name)) for name in ("a", "b", "a")]
    assert fingerprint(paths[0]) == fingerprint(paths[2]) != fingerprint(paths[1])
    options = [build("reward", {"name": "shapes", "mode": mode}) for mode in ("dense", "strict")]
    assert fingerprint(options[0]) != fingerprint(options[1])


def test_the_code_behind_a_decorator_or_an_object_is_part_of_a_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "deco.py").write_text(
        "import functools\ndef loud(f):\n    return functools.wraps(f)(lambda *a, **k: f(*a, **k))\n"
    )
    found = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "mine.py").write_text(
            f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nfrom deco import loud\nsys.path.pop(0)\n"
            f"@loud\ndef wrapped(samples):\n    return [{number} for _ in samples]\n"
            f"class Kind:\n    def __call__(self, samples):\n        return [{number} for _ in samples]\nobject = Kind()\n"
        )
        found.append(
            [fingerprint(build("reward", {"name": f"mine.py:{one}"}, folder)) for one in ("wrapped", "object")]
        )
    assert found[0][0] != found[1][0] and found[0][1] != found[1][1]
