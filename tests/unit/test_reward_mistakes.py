"""What an author or a user of rewards gets wrong most, and the one line that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_policy import Ones, ToyPolicy, gradients, stage, work

from mmrl.advantage.group import DrAdvantage
from mmrl.config.resolve import load
from mmrl.errors import ConfigError, RunError, UserError
from mmrl.meter import Meter
from mmrl.objective.objective import Objective
from mmrl.reward import Failed, Use, calibrate, set_up

CONFIG = """
policy: {name: %s}
stages:
  rl:
    kind: rl
    steps: 1
    prompts_per_step: 2
    group_size: 2
    optimizer: {lr: 1.0e-3}
    prompts: {name: list, items: [one, two]}
    rewards: {own: %s}
    objective: {advantage: {name: group, scale: group}}
"""

MINE = """
from mmrl.reward import Reward


class NoScore(Reward):
    def scores(self, samples):
        return [1.0 for _ in samples]


class Needy(Reward):
    needs = ("images",)

    def score(self, samples):
        return [1.0 for _ in samples]


class Missing(Reward):
    def setup(self, device):
        open("no such weights")

    def score(self, samples):
        return [1.0 for _ in samples]
"""


def told(folder: Path, policy: str, reward: str) -> str:
    (folder / "mine.py").write_text(MINE)
    (folder / "run.yaml").write_text(CONFIG % (policy, reward))
    with pytest.raises(ConfigError) as caught:
        load(str(folder / "run.yaml"))
    said = str(caught.value)
    assert len(said.splitlines()) == 1, said
    return said


@pytest.mark.parametrize(
    ("policy", "reward", "said"),
    [
        ("tiny_sd3", "{name: overlong, limit: 5}", "rewards.own: needs text, and TinySD3 makes image: it would skip every sample"),
        ("tiny_sd3", "{name: motion}", "rewards.own: needs video, and TinySD3 makes image"),
        ("tiny_qwen3vl", "{name: jpeg_compressibility}", "needs image, and TinyQwen3VL makes text"),
        ("tiny_sd3", '{name: "mine.py:NoScore"}', "class NoScore lacks the method score, which every reward has"),
        ("tiny_sd3", '{name: "mine.py:Needy"}', "class Needy needs 'images'; known needs: text, image, video, target"),
        ("tiny_sd3", "{name: mine.py}", "is a file; say what in it is meant, as 'mine.py:Name'"),
        ("tiny_sd3", "pick_score", "got 'pick_score'; expected a mapping, {key: value, ...} (a component is written {name: NAME"),
        ("tiny_sd3", "{name: jpeg_compressibility, then: [rank]}", "got 'rank'; expected a mapping"),
        ("tiny_sd3", "{name: jpeg_compressibility, then: {name: rank}}", "expected a list, [...]"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(tmp_path: Path, policy: str, reward: str, said: str) -> None:
    assert said in told(tmp_path, policy, reward)


def test_a_reward_that_cannot_load_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "run.yaml").write_text(CONFIG % ("tiny_sd3", '{name: "mine.py:Missing"}'))
    reward = load(str(tmp_path / "run.yaml")).stages[0].rewards["own"].reward
    with pytest.raises(
        UserError, match=r"^reward 'own' cannot be loaded: FileNotFoundError: .*no such weights.*mine\.py:\d+\)$"
    ):
        set_up(reward, "reward 'own'", None)  # type: ignore[arg-type]


def test_the_name_of_a_config_beside_is_proposed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.yaml").write_text("policy: {name: tiny_sd3}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no config 'tny\.yaml'; did you mean 'tiny\.yaml'\?"):
        load("tny.yaml")


class Skips(Ones):
    def score(self, samples: Any) -> list[Any]:
        return [None for _ in samples]


class Falls(Ones):
    def score(self, samples: Any) -> list[Any]:
        return [Failed("the server was down") if row % 2 else float(row) for row, _ in enumerate(samples)]


def test_a_first_step_without_any_score_ends_the_run() -> None:
    policy, own = ToyPolicy(), stage(Objective(DrAdvantage()))
    own.rewards = {"ones": Use(Skips())}
    with pytest.raises(
        RunError, match=r"first step could be scored \(ones: 0 failed, 24 skipped\): the rewards do not apply"
    ):
        gradients(policy, work(policy, own).updates(0, Meter()))


def test_a_cause_is_said_once_whatever_the_number_of_samples() -> None:
    said: list[str] = []
    policy, own = ToyPolicy(), stage(Objective(DrAdvantage()))
    own.rewards = {"falls": Use(Falls()), "ones": Use(Ones(), 0.5)}
    doing = work(policy, own)
    doing.notices.say = said.append
    doing.collector.tally.budget.share = 1.0
    gradients(policy, doing.updates(0, Meter()))
    assert len([line for line in said if "the server was down" in line]) == 1


def test_calibrate_says_why_there_is_no_verdict(tmp_path: Path) -> None:
    def pair(a: Any, b: Any) -> calibrate.Pair:
        from mmrl.rollout import Prompt, Sample

        prompt = Prompt("7", "x")
        return calibrate.Pair(Sample(prompt, text=a), Sample(prompt, text=b), 1.0)

    (failed,), (skipped,) = (
        calibrate.verdicts(Falls(), [pair("a", "b")])[0],
        calibrate.verdicts(Skips(), [pair("a", "b")])[0],
    )
    assert isinstance(failed, Failed) and "the server was down" in failed.reason
    assert isinstance(skipped, Failed) and "it skipped a sample" in skipped.reason
    (tmp_path / "pairs.jsonl").write_text(
        '{"prompt": "x", "a": {"text": "1"}, "b": {"text": "2"}, "better": "a", "tagret": 1}\n'
    )
    with pytest.raises(UserError, match="unknown key 'tagret'; did you mean 'target'"):
        calibrate.read_pairs(tmp_path / "pairs.jsonl")


def test_pictures_from_files_may_be_written_to(tmp_path: Path) -> None:
    from PIL import Image

    from mmrl.image import read_image

    Image.fromarray(np.zeros((2, 2, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").flags.writeable
