"""What is said to who writes a reward class or function of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mmrl.components import build
from mmrl.errors import UserError
from mmrl.options import complaints
from mmrl.reward.conformance import run
from mmrl.reward.named import named

MINE = """
from mmrl.reward import Reward


class Edges(Reward):
    limit: float = 0.3

    def score(self, samples):
        self.model = 3


class Ranged(Reward):
    range: tuple = (0.0, 1.0)

    def score(self, samples):
        return [1.0 for _ in samples]


def short(samples, x: float = None):
    return [1.0]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("mine.py:Edges", {"limt": 0.2}, "limt: unknown key 'limt'; did you mean 'limit'"),
        ("mine.py:Ranged", {}, r"class Ranged: range describes the reward and is no option; write it without a type"),
    ],
)
@pytest.mark.filterwarnings("ignore:Field name")
def test_options_are_told_as_in_a_config(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        named(name, options)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "mine.py:Edges",
            "reward 'mine.py:Edges' raised ValidationError: self.model = ...: options do not change; what",
        ),
        ("mine.py:short", "reward 'mine.py:short' returned 1 scores for 6 samples; expected one each"),
    ],
)
@pytest.mark.filterwarnings("ignore:Field name")
def test_a_slip_is_told_by_the_rewards_name_and_without_a_hint(name: str, said: str) -> None:
    console = Console(record=True, width=500)
    assert not run(name, {}, 24, None, console)
    text = console.export_text()
    assert said in text and "--size" not in text and "http" not in text


@pytest.mark.filterwarnings("ignore:Field name")
def test_null_where_the_default_is_none() -> None:
    assert build("reward", {"name": "mine.py:short", "x": None}, Path.cwd()).options == {"x": None}
    with pytest.raises(ValueError, match="x") as caught:
        build("reward", {"name": "mine.py:short", "x": "red"}, Path.cwd())
    assert complaints(caught.value, type(named("mine.py:short", {})), {"x": "red"})  # type: ignore[arg-type]
