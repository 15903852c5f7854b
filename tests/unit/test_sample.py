"""`mmrl sample`: answers about pictures and videos, images of a model that draws, and bad input in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mmrl import run as runs
from mmrl.cli import app
from mmrl.errors import UserError
from mmrl.report.grid import GAP
from mmrl.rollout import Prompt
from mmrl.sample import ask, draw
from mmrl.video import write_video

LOOKS = """
policy: {name: tiny_qwen3vl, max_prompt_tokens: 60}
run: {threads: 1}
stages:
  warm:
    kind: supervised
    steps: 1
    batch_size: 2
    examples: {name: puzzles, instruction: "", think: empty, mixture: [{kind: count_shapes, size: 56}]}
    optimizer: {lr: 1e-3}
evaluation:
  prompts: {name: puzzles, instruction: "", number: 4, mixture: [{kind: count_shapes, size: 56}], split: held_out}
  samples_per_prompt: 1
  sampling: {max_new_tokens: 6, temperature: 1.0}
"""
DRAWS = """
policy: {name: tiny_sd3, layers: 2, heads: 1}
run: {threads: 1}
stages:
  warm:
    kind: supervised
    steps: 1
    batch_size: 2
    examples: {name: shapes}
    optimizer: {lr: 1e-3}
evaluation:
  prompts: {name: list, items: [a red circle]}
  samples_per_prompt: 1
  sampling: {num_steps: 2}
"""


def trained(folder: Path, config: str) -> Path:
    (folder / "config.yaml").write_text(config)
    return runs.train(str(folder / "config.yaml"), [f"run.dir={folder / 'run'}"], resume=False)


@pytest.fixture(scope="module")
def looks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("looks"), LOOKS)


@pytest.fixture(scope="module")
def draws(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("draws"), DRAWS)


@pytest.fixture
def media(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (56, 56, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(rng.integers(0, 256, (28, 56, 3), dtype=np.uint8)).save(tmp_path / "b.png")
    write_video(tmp_path / "c.mp4", rng.integers(0, 256, (8, 28, 28, 3), dtype=np.uint8), 4)
    return tmp_path


# ---- a model that looks


def test_answers_about_a_picture_are_said_and_written(looks: Path, media: Path) -> None:
    """What the terminal says is what the JSON holds, an answer per seed, and the picture is on the sheet."""
    said = draw(looks, ask(["How many?"], [media / "a.png"], None), 5, 2, media / "out")
    written, sheet = (Path(line) for line in said[-2:])
    answers = json.loads(written.read_text())
    assert [one["seed"] for one in answers] == [5, 6] and answers[0]["media"] == [str(media / "a.png")]
    assert said[0] == "How many?  [a.png]"
    assert said[1].startswith(f"  seed 5: {answers[0]['text']}") and said[2].startswith(
        f"  seed 6: {answers[1]['text']}"
    )
    assert answers[0]["text"] != answers[1]["text"] and answers[0]["tokens"] <= 6
    shown = np.asarray(Image.open(sheet).convert("RGB"))
    enlarged = np.asarray(Image.open(media / "a.png")).repeat(4, axis=0).repeat(4, axis=1)
    assert np.array_equal(shown[GAP : GAP + 224, GAP : GAP + 224], enlarged)


def test_the_answer_depends_on_the_picture(looks: Path, media: Path) -> None:
    answers = []
    for name in ("a.png", "b.png"):
        written = draw(looks, ask(["How many?"], [media / name], None), 0, 1, media / "out")[-2]
        answers.append(json.loads(Path(written).read_text())[0]["text"])
    assert answers[0] != answers[1]
    assert len(list((media / "out").glob("*.json"))) == 2, "other pictures, another file"


def test_pictures_and_videos_stand_where_the_text_says(looks: Path, media: Path) -> None:
    text = "What moves in <video> and not in <image>?"
    said = draw(looks, ask([text], [media / "c.mp4", media / "a.png"], None), 0, 1, media / "out")
    assert said[0] == f"{text}  [c.mp4, a.png]"


def test_prompts_of_a_file_bring_their_own_media(looks: Path, media: Path) -> None:
    rows = [{"text": "How many?", "media": "a.png", "id": "one"}, {"text": "And in words?", "id": "two"}]
    (media / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = draw(looks, ask([], [], media / "q.jsonl"), 0, 1, media / "out")
    answers = json.loads(Path(said[-2]).read_text())
    assert [(one["id"], len(one["media"])) for one in answers] == [("one", 1), ("two", 0)]
    (media / "q.txt").write_text("How many?\nWhy?\n")
    assert [prompt.text for prompt in ask([], [], media / "q.txt")] == ["How many?", "Why?"]


def test_the_command_prints_answers(looks: Path, media: Path) -> None:
    arguments = [
        "sample",
        str(looks),
        "--prompt",
        "How many?",
        "--media",
        str(media / "a.png"),
        "--out",
        str(media / "o"),
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0 and "  seed 0: " in done.stdout and done.stdout.rstrip().endswith("_seed0.png")


@pytest.mark.parametrize(
    ("text", "names", "error"),
    [
        ("<image> or <image>?", ["a.png"], r"2 <image> and 0 <video>, but it comes with 1 images and 0 videos"),
        ("<image>?", ["c.mp4"], r"1 <image> and 0 <video>, but it comes with 0 images and 1 videos"),
        ("?", ["broken.png"], r"medium 1: /.*broken\.png is not a picture that can be read"),
        ("?", ["broken.mp4"], r"medium 1: /.*broken\.mp4 is not a video that can be read"),
        ("word " * 80, ["a.png"], r"longer than policy\.max_prompt_tokens: word-word.* tokens\)"),
    ],
)
def test_what_does_not_fit_is_one_line(looks: Path, media: Path, text: str, names: list[str], error: str) -> None:
    for name in ("broken.png", "broken.mp4"):
        (media / name).write_bytes(b"neither a picture nor a video" * 40)
    with pytest.raises(UserError, match=error) as caught:
        draw(looks, ask([text], [media / name for name in names], None), 0, 1, media / "out")
    assert "\n" not in str(caught.value) and not list((media / "out").glob("*"))


# ---- what is asked


def test_what_cannot_be_asked_is_said_before_a_weight_is_loaded(media: Path) -> None:
    for given, error in [
        (([], [], None), "nothing to ask"),
        ((["?"], [media / "none.png"], None), r"--media /.*none\.png is no file"),
        ((["?"], [media], None), "is a folder; expected a picture or a video"),
        ((["?"], [], media / "q.jsonl"), "--prompts brings its own texts"),
        (([], [], media / "none.jsonl"), r"no file /.*none\.jsonl"),
    ]:
        with pytest.raises(UserError, match=error):
            ask(*given)


# ---- a model that draws


def test_a_model_that_draws_writes_a_picture_per_sample(draws: Path, tmp_path: Path) -> None:
    said = draw(draws, [*ask(["a red circle"], [], None), Prompt("mine/a: b", "a blue square")], 3, 2, tmp_path)
    assert len(set(said)) == 4 == len(list(tmp_path.glob("*.png"))) and "mine-a-b" in said[2]
    assert all(Image.open(path).size == Image.open(said[0]).size for path in said)
    assert Path(said[0]).name.startswith("step_") and said[1].endswith("_seed4.png")


def test_a_model_that_draws_takes_no_media(draws: Path, media: Path) -> None:
    with pytest.raises(
        UserError, match=r"1 pictures and 0 videos, but the policy of this run \(tiny_sd3\) draws from text"
    ):
        draw(draws, ask(["a red circle"], [media / "a.png"], None), 0, 1, media / "out")


def test_ids_that_look_alike_in_a_name_have_files_of_their_own(draws: Path, looks: Path, tmp_path: Path) -> None:
    """Also in another call, and for ids that are longer than a file may be called."""
    for id in ("a/b", "a-b", "a:b", "x" * 300, "x" * 299 + "y"):
        draw(draws, [Prompt(id, "a red circle")], 0, 1, tmp_path / "drawn")
        draw(looks, [Prompt(id, "How many?")], 0, 1, tmp_path / "said")
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 5 == len(list((tmp_path / "said").glob("*.json")))
    assert any(path.name.endswith("_a-b_seed0.png") for path in (tmp_path / "drawn").glob("*.png"))
