"""Mixtures of puzzles as prompts, demonstrations and rewards, and the sheet that shows them."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from mmrl.components import build
from mmrl.config.dump import dump
from mmrl.config.resolve import load
from mmrl.data.puzzles.source import INSTRUCTION, REMEMBERED, PuzzleExamples, PuzzlePrompts
from mmrl.errors import ConfigError, UserError
from mmrl.preview import card, sheet, write_preview
from mmrl.reward import RewardSet
from mmrl.rollout import FAILED, OK, Prompt, Sample
from mmrl.tiles import opened, video_file
from mmrl.video import write_video

MIXTURE = [
    {"kind": "count_shapes", "level": [1, 2], "size": 48, "weight": 3},
    {"kind": "maze", "level": 2, "size": 48},
    {"kind": "rotation", "level": 2, "size": 32, "reference": False},
]
CONFIG = """
policy: {name: tiny_qwen3vl}
stages:
  warm:
    kind: supervised
    steps: 1
    batch_size: 2
    examples: {name: puzzles, mixture: [{kind: locate, level: 1, size: 56, noise: 12}]}
    optimizer: {lr: 1e-3}
  rl:
    kind: rl
    steps: 1
    prompts:
      name: puzzles
      split: train
      number: 50
      pictures: {name: folder, path: photos}
      mixture:
        - {kind: jigsaw, level: 1, size: 64}
        - {kind: "own.py:Own", weight: 2}
    prompts_per_step: 2
    group_size: 2
    rollout: {max_new_tokens: 4}
    rewards: {right: {name: puzzle}}
    objective: {advantage: {name: group, scale: group}}
    optimizer: {lr: 1e-3}
evaluation:
  prompts: {name: puzzles, split: held_out, number: 50, mixture: [{kind: patch_fit, level: 2, size: 64}]}
  by: [kind, level]
  sampling: {max_new_tokens: 4, temperature: 1.0}
  rewards: {read: {name: puzzle, mode: parsed}}
"""
OWN = '''
from mmrl.data.puzzles.puzzle import Puzzle, PuzzleMaker, Verdict


class Own(PuzzleMaker):
    """Black or white?"""

    kind = "own"
    levels = {1: "black or white"}
    side: int = 8

    def make(self, rng, level, pictures):
        self.check_level(level)
        white = int(rng.integers(2))
        import numpy as np
        shown = np.full((self.side, self.side, 3), 255 * white, dtype=np.uint8)
        return Puzzle("Black or white?", (shown,), {"white": white}, ["black", "white"][white])

    @classmethod
    def verify(cls, target, answer):
        right = answer == ["black", "white"][target["white"]]
        return Verdict(float(right), right)

    @classmethod
    def random_answer(cls, rng, target):
        return str(rng.choice(["black", "white"]))
'''


def prompts(**options: Any) -> PuzzlePrompts:
    return build("prompts", {"name": "puzzles", "mixture": MIXTURE, "number": 120, **options})


def written(folder: Path, text: str = CONFIG) -> str:
    (folder / "photos").mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(
        folder / "photos/a.png"
    )
    (folder / "own.py").write_text(OWN)
    (folder / "puzzles.yaml").write_text(text)
    return str(folder / "puzzles.yaml")


def reward(mode: str, *samples: Sample) -> list[float | None]:
    return build("reward", {"name": "puzzle", "mode": mode}).score(samples)


# ---- prompts


def test_prompts_say_what_they_are_and_are_the_same_in_every_source() -> None:
    found, again = prompts().load(), prompts().load()
    assert len(found) == 120 and len({prompt.id for prompt in found}) == 120
    for one, other in list(zip(found, again, strict=True))[:12]:
        assert (one.id, one.text, one.target, one.meta) == (
            other.id,
            other.text,
            other.target,
            other.meta,
        ) and one == other
        assert json.loads(json.dumps([one.target, dict(one.meta)]))
        assert one.text.endswith(f"\n{INSTRUCTION}") and one.meta["source"] == one.id
        for image, same in zip(one.media, other.media, strict=True):
            assert np.array_equal(image, same) and image.dtype == np.uint8
        assert reward("exact", Sample(one, text=f"<answer>{one.target['answer']}</answer>")) == [1.0]
    assert prompts(seed=1).load()[0].media[0].tobytes() != found[0].media[0].tobytes()
    plain = prompts(instruction="").load()[0]
    assert "\n" not in plain.text and plain.text == found[0].text.split("\n")[0]


def test_kinds_and_levels_come_in_the_proportion_of_their_weights() -> None:
    source = prompts()
    drawn = [source.choose("prompts", 0, index) for index in range(2000)]
    kinds = Counter(entry.kind for entry, _ in drawn)
    assert kinds["count_shapes"] / 2000 == pytest.approx(0.6, abs=0.04)
    assert kinds["maze"] / 2000 == pytest.approx(0.2, abs=0.035)
    levels = Counter(level for entry, level in drawn if entry.kind == "count_shapes")
    assert levels[1] / kinds["count_shapes"] == pytest.approx(0.5, abs=0.06) and set(levels) == {1, 2}


def test_parts_are_disjoint_by_id_and_draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PuzzlePrompts, "prompt", lambda *_: pytest.fail("a puzzle was drawn"))
    parts = {part: prompts(split={"validation": 0.1}).load(part) for part in ("train", "validation", "held_out")}
    ids = [prompt.id for part in parts.values() for prompt in part]
    assert sorted(ids) == sorted({f"puzzles:{index}" for index in range(120)})
    assert [len(part) for part in parts.values()] == [84, 12, 24]


def test_held_out_and_demonstrated_puzzles_are_none_of_the_train_part() -> None:
    shown = {part: {p.media[0].tobytes() for p in prompts(split=part).load()[:24]} for part in ("train", "held_out")}
    stream = PuzzleExamples.model_validate({"mixture": MIXTURE}).open(0)
    shown["examples"] = {stream.example(index).prompt.media[0].tobytes() for index in range(24)}
    assert len(set.union(*shown.values())) == 72


def test_pictures_are_made_again_not_kept() -> None:
    source = prompts()
    found = source.load()
    first = found[0].media[0]
    text = found[0].text
    assert found[0].media[0] is first
    for prompt in found:
        assert prompt.media
    assert len(source._recent) == REMEMBERED
    again = found[0].media[0]
    assert again is not first and np.array_equal(again, first) and found[0].text is text


def test_a_lazy_prompt_is_a_prompt_that_can_be_copied_and_sent() -> None:
    prompt = prompts().load()[3]
    copy = pickle.loads(pickle.dumps(prompt))
    assert copy == prompt and hash(copy) == hash(prompt) and np.array_equal(copy.media[0], prompt.media[0])
    hinted = dataclasses.replace(prompt, text="hint")
    assert (
        type(hinted) is Prompt and hinted.text == "hint" and hinted.target == prompt.target and hinted.id == prompt.id
    )
    assert prompt != prompts().load()[4] and isinstance(prompt, Prompt)
    with pytest.raises(AttributeError):
        prompt.text = "no"  # type: ignore[misc]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mixture": [{"kind": "jigsaw", "level": 9}]}, r"puzzle 'jigsaw' has no level 9 \(there: 1: 2 x 2 tiles; 2: 3 x 3 tiles"),
        ({"mixture": [{"kind": "jigsaw", "level": [1, 4]}]}, "has no level 4"),
        ({"mixture": [{"kind": "jigsaw", "level": []}]}, r"mixture\.0\.level\s+is an empty list"),
        ({"mixture": [{"kind": "jigsa"}]}, "unknown puzzle 'jigsa'; did you mean 'jigsaw'"),
        ({"mixture": [{"kind": "jigsaw", "siz": 9}]}, r"mixture\.0\.siz\s+unknown key 'siz'; did you mean 'size'"),
        ({"mixture": [{"kind": "jigsaw", "size": "big"}]}, r"mixture\.0\.size\s+got 'big'; input should be a valid integer"),
        ({"mixture": [{"kind": "jigsaw", "size": 32, "gap": 9}]}, "leaves tiles under 4 pixels"),
        ({"mixture": []}, "the mixture is empty"),
        ({"mixture": [{"kind": "mmrl.rollout:Sample"}]}, "is no subclass of mmrl.data.puzzles.puzzle.PuzzleMaker"),
        ({"pictures": "folder"}, r"pictures\.path\s+is required and missing"),
        ({"pictures": {"name": "skimag"}}, "unknown pictures 'skimag'; did you mean 'skimage'"),
        ({"pictures": {"name": "procedural", "style": "art"}}, r"pictures\.style\s+got 'art'"),
    ],
)  # fmt: skip
def test_a_wrong_mixture_is_one_clear_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        prompts(**change)
    (found,) = caught.value.errors()
    assert "\n" not in found["msg"]
    with pytest.raises(ValidationError, match=message):
        prompts(**change)


def test_a_folder_without_pictures_shows_when_the_prompts_are_loaded(tmp_path: Path) -> None:
    source = prompts(pictures={"name": "folder", "path": str(tmp_path)})
    with pytest.raises(UserError, match="no picture in"):
        source.load()


# ---- examples


@pytest.mark.parametrize("think", ["rationale", "empty"])
def test_demonstrations_are_right_and_well_formed_and_a_function_of_the_index(think: str) -> None:
    source = build("examples", {"name": "puzzles", "mixture": MIXTURE, "think": think})
    stream, samples = source.open(5), []
    for index in (0, 7, 3):
        sample, again = stream.example(index), source.open(5).example(index)
        assert sample.text == again.text and np.array_equal(sample.prompt.media[0], again.prompt.media[0])
        assert (sample.text.startswith("<think></think>")) == (think == "empty") and sample.images == ()
        samples.append(sample)
    assert reward("format", *samples) == reward("exact", *samples) == reward("partial", *samples) == [1.0] * 3
    assert source.open(6).example(0).prompt.media[0].tobytes() != samples[0].prompt.media[0].tobytes()


# ---- the reward


def test_modes_of_the_reward() -> None:
    prompt = Prompt("p", "?", target={"kind": "count_shapes", "answer": "4", "puzzle": {"count": 4, "most": 4}})
    texts = [
        "<think>.</think><answer>4</answer>",
        "<answer>3</answer>",
        "<think></think><answer>x</answer>",
        "4",
        "<answer>4",
    ]
    samples = [Sample(prompt, text=text) for text in texts]
    assert reward("partial", *samples) == [1, 0.75, 0, 0, 0]
    assert reward("exact", *samples) == [1, 0, 0, 0, 0]
    assert reward("parsed", *samples) == [1, 1, 0, 0, 0]
    assert reward("format", *samples) == [1, 0, 1, 0, 0]


@pytest.mark.parametrize("target", [None, 3, {"kind": "count_shapes"}, {"kind": "none", "puzzle": {}}])
def test_a_foreign_target_is_a_failure_and_no_number(target: Any) -> None:
    rewards = RewardSet({"right": (build("reward", {"name": "puzzle"}), 1.0)})
    right = prompts().load()[0]
    samples = [Sample(Prompt("p", "?", target=target), text="<answer>1</answer>"), Sample(right, text="nothing")]
    scores = rewards.score(samples)
    assert scores.status[:, 0].tolist() == [FAILED, OK] and scores.values[1, 0] == 0
    assert len(scores.messages) == 1 and "\n" not in scores.messages[0]


# ---- in a config


def test_a_config_is_resolved_with_own_puzzles_and_pictures_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = written(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    resolved = load(config)
    stage: Any = resolved.stages[1]
    found = stage.prompts.load()
    assert len(found) == 40 and {prompt.meta["kind"] for prompt in found} == {"jigsaw", "own"}
    own = next(prompt for prompt in found if prompt.meta["kind"] == "own")
    right, wrong = (Sample(own, text=f"<answer>{said}</answer>") for said in (own.target["answer"], "grey"))
    assert reward("exact", right, wrong) == [1, 0]
    tree = dump(resolved)
    (tmp_path / "again.json").write_text(json.dumps(tree))
    (tmp_path / "again.yaml").write_text(json.dumps(tree))
    again: Any = load(str(tmp_path / "again.yaml"))
    assert dump(again)["stages"]["rl"]["prompts"] == tree["stages"]["rl"]["prompts"]
    assert tree["stages"]["rl"]["prompts"]["mixture"][0]["gap"] == 2
    assert again.stages[1].prompts.load()[0] == found[0]


def test_a_missing_level_is_told_with_file_line_and_key(tmp_path: Path) -> None:
    config = written(tmp_path / "in", CONFIG.replace("jigsaw, level: 1", "jigsaw, level: 7"))
    with pytest.raises(
        ConfigError, match=r"puzzles\.yaml:19: stages\.rl\.prompts\.mixture\.0\.level: puzzle 'jigsaw' has no level 7"
    ) as caught:
        load(config)
    assert "\n" not in str(caught.value)


# ---- the preview


def test_the_preview_shows_every_stage_and_the_evaluation(tmp_path: Path) -> None:
    config, out = written(tmp_path / "in"), tmp_path / "to" / "sheet.png"
    lines = write_preview(config, [], out, 8, None)
    assert lines == [
        "warm: the first 3 examples of puzzles",
        "rl: 3 of 40 prompts of puzzles",
        "evaluation: 2 of 10 prompts of puzzles",
        str(out),
    ]
    page = np.asarray(Image.open(out).convert("RGB"))
    assert page.shape[1] == 3 * (272 + 16) + 16
    noise = Image.open(tmp_path / "in" / "photos" / "a.png")
    assert noise.size == (90, 70) and len(np.unique(page.reshape(-1, 3), axis=0)) > 5000  # the photograph is in it
    assert len(write_preview(config, [], out, 50, "rl")) == 2
    assert np.asarray(Image.open(out)).shape[0] > 10 * 100  # all 40 prompts in rows of 4
    with pytest.raises(UserError, match=r"no stage 'sft' .*; there is: warm, rl, evaluation"):
        write_preview(config, [], out, 8, "sft")
    with pytest.raises(UserError, match=r"cannot write .*choose another --out"):
        write_preview(config, [], tmp_path, 8, "rl")


def test_a_video_file_is_shown_as_frames_with_their_times(tmp_path: Path) -> None:
    frames = np.repeat(np.arange(0, 240, 20, dtype=np.uint8), 24 * 32 * 3).reshape(12, 32, 24, 3)
    write_video(tmp_path / "a.mp4", frames, 4)  # 24 pixels wide, which decord 0.6 cannot read
    tiles = video_file(tmp_path / "a.mp4", 4)
    assert [tile.label for tile in tiles] == ["0.00 s", "1.00 s", "1.75 s", "2.75 s"]
    assert np.abs([np.asarray(tile.image).mean() for tile in tiles] - np.array([0, 80, 140, 220])).max() < 4
    (tmp_path / "b.mp4").write_text("no video")
    with pytest.raises(
        UserError, match=r"b\.mp4 is no picture, and /.*b\.mp4 is not a video that can be read: [^\n]+$"
    ):
        opened(tmp_path / "b.mp4", None, 4)


def test_a_card_has_pictures_question_answer_and_origin() -> None:
    images = [np.full((56, 56, 3), 200, dtype=np.uint8)]
    prompt = Prompt("p:1", "How many?", tuple(images), {"answer": "3"}, {"kind": "count", "level": 2})
    found = card(prompt)
    assert [text for text, _ in found.lines] == ["How many?", "", "answer: 3", "count · level 2 · p:1"]
    (row,) = found.rows
    assert row[0].image.size == (224, 224)  # 4 times, with hard edges
    shown = card(Sample(Prompt("c", "a red circle"), images=tuple(images)))
    assert len(shown.rows) == 1 and [text for text, _ in shown.lines] == ["a red circle", "c"]
    pair = card(Sample(Prompt("d", "?"), text="yes", meta={"rejected": "no"}))
    assert [text for text, _ in pair.lines] == ["?", "", "yes", "rejected: no", "d"]
    assert card(Prompt("t", "text only", target={"a": 1})).lines[2][0] == 'target: {"a": 1}'


def test_a_video_is_a_contact_sheet_of_frames_with_their_times() -> None:
    video = np.repeat(np.arange(24, dtype=np.uint8), 40 * 40 * 3).reshape(24, 40, 40, 3)
    tiles = [tile for row in card(Prompt("v", "When?", (video,), meta={"fps": 8.0})).rows for tile in row]
    assert len(tiles) == 8 and tiles[0].label == "0.00 s" and tiles[-1].label == "2.88 s"
    assert tiles[-1].image.getpixel((3, 3)) == (23, 23, 23)
    output = card(Sample(Prompt("v", "Draw."), video=video[:3], meta={}))
    assert [tile.label for row in output.rows for tile in row] == ["frame 1", "frame 2", "frame 3"]
    assert sheet([("one", [output])]).width >= 272


def test_media_files_are_opened(tmp_path: Path) -> None:
    image = Image.fromarray(np.full((10, 20, 3), 7, dtype=np.uint8))
    image.save(tmp_path / "a.png")
    (row,) = card(Prompt("f", "?", (str(tmp_path / "a.png"),))).rows
    assert row[0].image.getpixel((0, 0)) == (7, 7, 7)
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"clip\.mp4"):
        card(Prompt("f", "?", (str(tmp_path / "clip.mp4"),)))
    with pytest.raises(UserError, match=r"no file .*none\.png"):
        card(Prompt("f", "?", (str(tmp_path / "none.png"),)))


@pytest.mark.parametrize("sizes", [[(4000, 100)], [(8, 8)] * 60, [(224, 224), *[(56, 56)] * 8], [(30, 3000)], []])
def test_no_card_is_wider_than_its_sheet(sizes: list[tuple[int, int]]) -> None:
    media = tuple(np.zeros((height, width, 3), dtype=np.uint8) for width, height in sizes)
    found = card(Prompt("p", "?", media))
    assert sum(len(row) for row in found.rows) == len(sizes)
    for row in found.rows:
        assert sum(tile.image.width + 4 for tile in row) <= 252 + 4
    assert sum(max(tile.image.height for tile in row) for row in found.rows) <= 400


def test_demonstrations_and_prompts_have_ids_of_their_own() -> None:
    mixture = [{"kind": "jigsaw", "level": 1}]
    shown = build("examples", {"name": "puzzles", "mixture": mixture}).open(0).example(3).prompt
    asked = prompts(mixture=mixture).load()[3]
    assert (shown.id, shown.meta["source"], asked.id) == ("demonstrations:3", "demonstrations:3", "puzzles:3")
    assert asked.meta["source"] == "puzzles:3"
