"""Rewards against labelled pairs: accuracy, a liking for a place or for length, failures, files that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from mmrl.cli import app
from mmrl.errors import UserError
from mmrl.reward import Failed, Reward
from mmrl.reward.calibrate import measured, read_pairs, run, verdicts
from mmrl.reward.pairwise import PairwiseReward, Verdict
from mmrl.rollout import Sample


def written(folder: Path, rows: Sequence[tuple[str, str, str]]) -> Path:
    file = folder / "pairs.jsonl"
    lines = [{"prompt": "p", "a": {"text": a}, "b": {"text": b}, "better": better} for a, b, better in rows]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return file


ROWS = [("xxx", "x", "a"), ("x", "xx", "a"), ("xx", "x", "b"), ("xx", "xxxx", "b"), ("x", "xxx", "tie")]


class Length(Reward):
    """The longer text is the better one."""

    def score(self, samples: Sequence[Sample]) -> list[Any]:
        return [float(len(sample.text or "")) for sample in samples]


class First(PairwiseReward):
    """What is shown first wins; nothing is said of a text of one x, and four make it fail."""

    def compare(self, pairs: Sequence[tuple[Sample, Sample]]) -> list[Verdict]:
        found: list[Verdict] = []
        for first, second in pairs:
            lengths = {len(first.text or ""), len(second.text or "")}
            found.append(Failed("too long") if 4 in lengths else None if lengths == {1, 3} else 1.0)
        return found


def test_a_reward_that_likes_length(tmp_path: Path) -> None:
    pairs = read_pairs(written(tmp_path, ROWS))
    found = measured(pairs, verdicts(Length(), pairs))
    assert found == {
        "accuracy": (0.5, 4),
        "unread": (0.0, 5),
        "longer": (1.0, 4),
        "longer, labels": (0.5, 4),
    }


def test_a_judge_that_likes_the_first_place(tmp_path: Path) -> None:
    pairs = read_pairs(written(tmp_path, ROWS))
    shown = verdicts(First(), pairs)
    assert [len(one) for one in shown] == [2] * 5 and isinstance(shown[3][0], Failed)
    found = measured(pairs, shown)
    assert found["unread"] == (0.6, 5) and found["accuracy"] == (0.5, 2)
    assert found["order"] == (1.0, 2) and found["first"] == (1.0, 2) and found["longer"] == (0.5, 2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "pairs.jsonl:1: no JSON"),
        ('{"prompt": "p"}', "pairs.jsonl:1: expected the keys prompt, a, b and better"),
        ('{"prompt": "p", "a": {"text": "x"}, "b": {"text": "y"}, "better": "c"}', "expected one of: a, b, tie"),
        (
            '{"prompt": "p", "a": "x", "b": {"text": "y"}, "better": "a"}',
            "pairs.jsonl:1: a: got 'x'; expected an object",
        ),
        ("", "no pairs; expected lines like"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "pairs.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_pairs(tmp_path / "pairs.jsonl")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def length(samples):\n    return [float(len(one.text)) for one in samples]\n")
    result = CliRunner().invoke(app, ["reward", "calibrate", "mine.py:length", str(written(tmp_path, ROWS))])
    assert result.exit_code == 0, result.output
    assert "agrees with the label: 0.500 +- 0.250 of 4" in result.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"better": ["a"]}, r"better is \['a'\]; expected one of: a, b, tie"),
        ({"a": {"text": 1}}, "a: text is 1; expected a text"),
        ({"a": {"image": 1}}, "a: image is 1; expected the name of a file"),
        ({"media": "abc"}, "media is 'abc'; expected a list of files"),
    ],
)
def test_a_pair_of_other_types_is_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {"prompt": "p", "a": {"text": "x"}, "b": {"text": "y"}, "better": "a"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row | change))
    with pytest.raises(UserError, match=rf"pairs\.jsonl:1: {message}$"):
        read_pairs(tmp_path / "pairs.jsonl")


def test_other_line_ends_are_text_and_other_encodings_are_told(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    row = {"prompt": "p", "a": {"text": "x\u2028y"}, "b": {"text": "y"}, "better": "a"}
    file.write_text(json.dumps(row, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert [pair.a.text for pair in read_pairs(file)] == ["x\u2028y"]
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="it is not UTF-8"):
        read_pairs(file)


def test_options_that_do_not_fit_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("def mine(samples, channel: int = 0):\n    return [0 for _ in samples]\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"^reward 'mine\.py:mine': channel: got 'red'; input should be a valid integer"
    ):
        run("mine.py:mine", {"channel": "red"}, written(tmp_path, ROWS), Console())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": {"image": "x.png"}}, r"a: no file /.*x\.png; names of files are relative to the JSONL file"),
        ({"media": ["x.png"]}, r"media: no file /.*x\.png; names of files are relative to the JSONL file"),
    ],
)
def test_a_missing_file_is_told_with_its_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {"prompt": "p", "a": {"text": "x"}, "b": {"text": "y"}, "better": "a"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | change))
    with pytest.raises(UserError, match=rf"pairs\.jsonl:2: {message}$"):
        read_pairs(tmp_path / "pairs.jsonl")


class Seeing(Length):
    """Needs a picture."""

    needs = ("text", "image")


class SeeingFirst(First):
    """Needs a picture."""

    needs = ("image",)


@pytest.mark.parametrize("reward", [Seeing(), SeeingFirst()])
def test_a_pair_that_lacks_something_is_not_judged(tmp_path: Path, reward: Reward) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "1.png")
    seen = {"image": "1.png", "text": "xx"}
    rows = [{"prompt": "p", "a": seen, "b": other, "better": "a"} for other in ({"text": "x"}, seen)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    half, whole = verdicts(reward, read_pairs(tmp_path / "pairs.jsonl"))
    assert whole == ([1.0, 0.0] if isinstance(reward, PairwiseReward) else [0.5])
    assert isinstance(half[0], Failed)
    assert half[0].reason == f"line 1: b has no image; the reward needs {', '.join(reward.needs)}"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("needs = ('image',)", r"of the 5 pairs of .*pairs\.jsonl: line 1: a has no image; the reward needs image$"),
        ("takes = 'pictures'", r"line 1: it skipped a sample; it takes pictures$"),
    ],
)
def test_no_verdict_at_all_is_an_error_that_says_what_is_lacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    (tmp_path / "mine.py").write_text(
        f"from mmrl.reward import Reward\nclass Mine(Reward):\n    {body}\n"
        "    def score(self, samples):\n        return [None for _ in samples]\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        run("mine.py:Mine", {}, written(tmp_path, ROWS), Console())
