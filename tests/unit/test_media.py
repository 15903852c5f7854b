"""Media of prompts for generators: what fits a policy, supervised videos and edits from files, and what `mmrl sample` writes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmrl import sample as sampling
from mmrl.check import check_media
from mmrl.components import build
from mmrl.config.resolve import load
from mmrl.distributed import Group
from mmrl.errors import ConfigError, UserError
from mmrl.evaluate import evaluate, evaluation_draws
from mmrl.media import check_fit
from mmrl.reward import RewardSet
from mmrl.rollout import Draw, Prompt, Sample
from mmrl.video import read_clip, read_video, write_video

PICTURE, VIDEO = np.zeros((8, 8, 3), np.uint8), np.zeros((3, 8, 8, 3), np.uint8)


def policy(role: str | None) -> Any:
    return SimpleNamespace(media_role=role)


@pytest.mark.parametrize(
    ("role", "media", "fits"),
    [
        (None, (), True), (None, (PICTURE,), False), (None, ("a.mp4",), False),
        ("first_frame", (), False), ("first_frame", (PICTURE,), True), ("first_frame", ("a.png", "b.png"), False),
        ("first_frame", (VIDEO,), False), ("first_frame", ("a.png", "a.mp4"), False),
        ("edit", (), False), ("edit", ("a.png",), True), ("edit", (PICTURE, PICTURE), True), ("edit", (VIDEO,), False),
    ],
)  # fmt: skip
def test_a_role_says_which_media_fit(role: str | None, media: tuple[Any, ...], fits: bool) -> None:
    prompts = [Prompt("one", "t", media)]
    if fits:
        check_fit(prompts, policy(role), "toy")
    else:
        with pytest.raises(ValueError, match=r"prompt 'one' has \d pictures and \d videos, but toy ") as caught:
            check_fit(prompts, policy(role), "toy")
        assert "\n" not in str(caught.value)


def test_a_policy_that_looks_takes_everything() -> None:
    check_fit([Prompt("a", "t"), Prompt("b", "t", (PICTURE, VIDEO))], SimpleNamespace(), "toy")


CONFIG = """
policy: {{name: tiny_sd3}}
run: {{threads: 1}}
stages:
  warm:
    kind: supervised
    steps: 1
    batch_size: 2
    examples: {examples}
    optimizer: {{lr: 1e-3}}
evaluation:
  prompts: {prompts}
  samples_per_prompt: 1
  sampling: {{num_steps: 2}}
"""


def config(folder: Path, examples: str = "{name: shapes}", prompts: str = "{name: list, items: [a red circle]}") -> str:
    (folder / "config.yaml").write_text(CONFIG.format(examples=examples, prompts=prompts))
    return str(folder / "config.yaml")


def test_a_config_whose_media_do_not_fit_the_policy_is_refused_with_its_place(tmp_path: Path) -> None:
    load(config(tmp_path))
    with pytest.raises(ConfigError, match=r"has 1 pictures and 0 videos, but tiny_sd3 draws from text alone") as caught:
        load(config(tmp_path, "{name: shape_edits, kinds: [move]}", "{name: moving_shapes, first_frame: true}"))
    first, second = str(caught.value).splitlines()
    assert "stages.warm.examples" in first and "evaluation.prompts" in second


@pytest.fixture
def files(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, size in (("day", (30, 40)), ("night", (60, 80)), ("second", (20, 20))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    write_video(tmp_path / "clip.mp4", rng.integers(0, 256, (12, 32, 48, 3), dtype=np.uint8), 8)
    return tmp_path


def rows(folder: Path, *lines: dict[str, Any]) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "rows.jsonl"


def test_an_edit_is_a_picture_with_its_sources(files: Path) -> None:
    path = rows(files, {"path": "night.png", "text": "make it night", "media": ["day.png", "second.png"]})
    example = build("examples", {"name": "jsonl", "path": str(path)}).open(0).example(0)
    assert example.prompt.media == (str(files / "day.png"), str(files / "second.png"))
    assert example.images[0].shape == (60, 80, 3)
    fitted = build("examples", {"name": "jsonl", "path": str(path), "size": 16}).open(0).example(0)
    assert [item.shape for item in (*fitted.prompt.media, *fitted.images)] == [(16, 16, 3)] * 3


def test_a_video_is_an_example_of_so_many_frames(files: Path) -> None:
    path = rows(files, {"path": "clip.mp4", "text": "noise"})
    spec = {"name": "jsonl", "path": str(path)}
    whole = build("examples", spec).open(0).example(0)
    frames, _ = read_video(files / "clip.mp4")
    assert np.array_equal(whole.video, frames) and whole.meta["fps"] == 8 and not whole.images
    few = build("examples", spec | {"frames": 5, "fps": 4}).open(0).example(0)
    assert np.array_equal(few.video, frames[[0, 2, 4, 6, 8]]) and few.meta["fps"] == 4
    small = build("examples", spec | {"size": 16}).open(0).example(0)
    assert small.video.shape == (12, 16, 16, 3)
    (files / "day.txt").write_text("a day\n"), (files / "clip.txt").write_text("noise\n")
    for name in ("night", "second"):
        (files / f"{name}.png").unlink()
    stream = build("examples", {"name": "folder", "path": str(files)}).open(0)
    assert {stream.example(k).prompt.id for k in range(2)} == {"day.png", "clip.mp4"}


def test_a_clip_that_is_too_short_or_too_slow_is_named(files: Path) -> None:
    with pytest.raises(UserError, match=r"clip\.mp4 has 6 frames at 4 per second; expected 7 or more"):
        read_clip(files / "clip.mp4", 7, 4)
    with pytest.raises(UserError, match=r"clip\.mp4 has 8 frames per second; 16 would repeat frames"):
        read_clip(files / "clip.mp4", 2, 16)


def test_examples_that_cannot_be_read_are_all_named(files: Path) -> None:
    path = rows(
        files, {"path": "day.png", "text": "a"}, {"path": "night.png", "text": "b"}, {"path": "clip.mp4", "text": "c"}
    )
    spec = f"{{name: jsonl, path: {path}, frames: 12}}"
    assert check_media(load(config(files, spec))) == "3 pictures and videos can be read, 40 x 30 to 80 x 60 pixels"
    (files / "night.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError) as caught:
        check_media(load(config(files, spec.replace("frames: 12", "frames: 13"))))
    picture, video = str(caught.value).splitlines()
    assert picture.startswith(f"{path}:2: ") and "night.png is not a picture" in picture
    assert video.startswith(f"{path}:3: ") and "clip.mp4 has 12 frames at 8 per second" in video


class Maker:
    """Gives back whatever `make` makes of a draw."""

    blind_view = None

    def __init__(self, role: str | None, make: Any) -> None:
        self.media_role, self.make = role, make

    def fits(self, prompts: list[Prompt]) -> tuple[list[Prompt], dict[str, int]]:
        return prompts, {}

    def generate(self, draws: list[Draw], plan: Any, view: str = "original") -> list[Sample]:
        return [self.make(draw) for draw in draws]


def drawn(monkeypatch: pytest.MonkeyPatch, maker: Maker, prompt: Prompt, out: Path) -> list[Path]:
    resolved = SimpleNamespace(
        evaluation=SimpleNamespace(plan=None), config=SimpleNamespace(policy=SimpleNamespace(name="toy"))
    )
    monkeypatch.setattr(sampling, "trained_policy", lambda run: (resolved, maker, "step_1"))
    return [Path(line) for line in sampling.draw(Path("run"), [prompt], 3, 2, out)]


def test_videos_are_written_as_mp4_and_on_a_sheet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    video = np.full((9, 24, 24, 3), 120, np.uint8)
    maker = Maker(None, lambda draw: Sample(draw.prompt, video=video, meta={"fps": 8}))
    first, second, sheet = drawn(monkeypatch, maker, Prompt("p", "grey"), tmp_path)
    assert (first.name, second.name, sheet.name) == (
        "step_1_p_seed3.mp4",
        "step_1_p_seed4.mp4",
        "step_1_p_seed3_sheet.png",
    )
    frames, fps = read_video(first)
    assert frames.shape == video.shape and fps == 8 and abs(frames.astype(int) - 120).max() <= 3
    assert Image.open(sheet).width > 2 * 24


def test_a_video_of_odd_size_is_an_animated_picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    video = np.random.default_rng(0).integers(0, 256, (4, 15, 24, 3), dtype=np.uint8)
    maker = Maker(None, lambda draw: Sample(draw.prompt, video=video, meta={"fps": 8}))
    path = drawn(monkeypatch, maker, Prompt("p", "noise"), tmp_path)[0]
    with Image.open(path) as image:
        assert path.suffix == ".webp" and image.n_frames == 4 and image.size == (24, 15)


def test_edits_are_written_alone_and_beside_their_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    maker = Maker("edit", lambda draw: Sample(draw.prompt, images=(255 - draw.prompt.media[0],)))
    first, _, sheet = drawn(monkeypatch, maker, Prompt("p", "invert", (PICTURE,)), tmp_path)
    assert np.array_equal(np.asarray(Image.open(first)), 255 - PICTURE)
    assert sheet.name == "step_1_p_seed3_sheet.png"
    with pytest.raises(UserError, match=r"policy of this run \(toy\) edits one or more pictures; give it that"):
        drawn(monkeypatch, maker, Prompt("p", "invert"), tmp_path)


def test_held_out_rewards_of_videos_and_edits_are_means_by_kind(tmp_path: Path) -> None:
    """Half of the edits are left undone, half of the clips run backwards."""
    for name in ("shape_edits", "moving_shapes"):
        stream = build("examples", {"name": name}).open(0)
        examples = {sample.prompt.id: sample for sample in (stream.example(index) for index in range(12))}
        wrong = set(list(examples)[::2])

        def make(draw: Draw, examples: dict = examples, wrong: set = wrong) -> Sample:
            sample = examples[draw.prompt.id]
            if draw.prompt.id not in wrong:
                return sample
            if sample.video is None:
                return Sample(sample.prompt, images=sample.prompt.media[:1])
            return Sample(sample.prompt, video=sample.video[::-1], meta=sample.meta)

        prompts = [sample.prompt for sample in examples.values()]
        modes = {mode: (build("reward", {"name": name, "mode": mode}), 1.0) for mode in ("dense", "exact", "strict")}
        found = evaluate(
            Maker(None, make), None, evaluation_draws(prompts, 1, 0), RewardSet(modes), 5, 4, Group(), ["kind"]
        )
        right = 1 - len(wrong) / len(prompts)
        assert found.metrics["exact"] == found.metrics["strict"] == pytest.approx(right)
        assert right < found.metrics["dense"] < 1 and found.failed == 0
        kinds = {prompt.meta["kind"] for prompt in prompts}
        assert {f"exact/kind={kind}" for kind in kinds} <= set(found.metrics)
        assert len(found.pictures) == 5
        assert all((picture.video is None) == (name == "shape_edits") for picture in found.pictures)
