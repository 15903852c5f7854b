"""Videos and edits in a run's folder: animated previews, contact sheets, and what the report shows of them."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrl.animation import FRAMES, animated, preview
from mmrl.components import build
from mmrl.evaluate import Picture, picture_of
from mmrl.folder import RunFolder
from mmrl.report.data import read_run
from mmrl.report.grid import cut_grid
from mmrl.report.html import write_report
from mmrl.report.shots import save_pictures
from mmrl.rollout import Prompt, Sample
from mmrl.tiles import Tile, beside


def frames_of(file: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(file)) as image:
        frames = []
        for number in range(image.n_frames):
            image.seek(number)
            frames.append(np.asarray(image.convert("RGB")))
        return np.stack(frames)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_a_small_video_is_kept_exactly_with_its_speed() -> None:
    video = noise(9, 24, 32)
    file = animated(video, 8)
    assert np.array_equal(frames_of(file), video)
    with Image.open(io.BytesIO(file)) as image:
        image.load()
        assert image.info["duration"] == 125 and image.info["loop"] == 0


def test_a_preview_is_small_and_takes_as_long() -> None:
    frames, fps = preview(np.zeros((121, 480, 832, 3), np.uint8), 24)
    assert frames.shape == (FRAMES, 148, 256, 3) and FRAMES / fps == pytest.approx(121 / 24)
    same, rate = preview(video := noise(5, 24, 24), 8)
    assert np.array_equal(same, video) and rate == 8


def test_what_is_given_and_what_is_made_are_told_apart() -> None:
    one, frame = Tile(Image.new("RGB", (4, 4))), Tile(Image.new("RGB", (4, 4)), "0.50 s")
    assert [[tile.label for tile in group] for group in beside([[one, one]], [[one]])] == [["given", "given", "made"]]
    assert [[tile.label for tile in group] for group in beside([[one]], [[frame]])] == [["given"], ["0.50 s"]]
    assert beside([], [[one]]) == [[one]]


def shown(name: str, **options: object) -> list[Picture]:
    stream = build("examples", {"name": name, **options}).open(0)
    return [picture_of(stream.example(index), {"strict": 1.0}) for index in range(3)]


def run_with(path: Path, pictures: list[Picture]) -> RunFolder:
    folder = RunFolder(path)
    folder.create({"stages": {"rl": {"kind": "rl", "steps": 2}}}, {})
    for step, when in ((0, "before"), (1, "during"), (2, "after")):
        save_pictures(pictures, folder.samples, f"{step:06d}_rl_{when}")
    return folder


def test_videos_are_stored_once_and_shown_in_motion(tmp_path: Path) -> None:
    pictures = shown("moving_shapes", first_frame=True, frames=5)
    folder = run_with(tmp_path, pictures)
    assert len(list((folder.samples / "media").glob("*.webp"))) == 3
    assert cut_grid(folder.samples / "000000_rl_before.png") == [None, None, None]
    page = write_report(folder).read_text()
    found = [base64.b64decode(uri) for uri in re.findall(r'class="pixels" src="data:image/webp;base64,([^"]+)"', page)]
    assert len(found) == 3 * (2 + 3), "before and after, and the three of the strip"
    assert np.array_equal(frames_of(found[0]), pictures[0].video)
    assert page.count(">given<") == 3


def test_an_edit_is_shown_beside_its_source_and_can_be_cut_out(tmp_path: Path) -> None:
    pictures = shown("shape_edits", kinds=["insert"])
    folder = run_with(tmp_path, pictures)
    cut = cut_grid(folder.samples / "000000_rl_before.png")
    assert all(np.array_equal(np.asarray(one), picture.image) for one, picture in zip(cut, pictures, strict=True))
    sheet = Image.open(folder.samples / "000000_rl_before.png")
    assert sheet.width > 3 * 3 * 144, "three pictures, each beside its two sources"
    assert write_report(folder).read_text().count(">given<") == 6


def test_a_missing_or_foreign_video_is_a_note(tmp_path: Path) -> None:
    folder = run_with(tmp_path, shown("moving_shapes", frames=3))
    entries = json.loads((folder.samples / "000002_rl_after.json").read_text())
    (folder.samples / entries[0]["video"]).write_bytes(b"RIFF")
    (tmp_path / "secret.webp").write_bytes(animated(noise(3, 8, 8), 8))
    entries[1]["video"] = "media/../../secret.webp"
    (folder.samples / "000002_rl_after.json").write_text(json.dumps(entries))
    data = read_run(folder)
    assert [shot.video is None for shot in data.sheets[-1].shots] == [True, True, False]
    assert len([note for note in data.notes if "missing or incomplete" in note]) == 2
    assert "no picture" in write_report(folder).read_text()


def test_a_video_without_a_rate_is_an_error() -> None:
    with pytest.raises(KeyError, match="fps"):
        picture_of(Sample(Prompt("p", "t"), video=noise(3, 8, 8)), {})
