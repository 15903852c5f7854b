"""The length of a prompt from sizes alone against its encoding, and bounds of the frames of a video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmrl.errors import UserError
from mmrl.rollout import Prompt
from mmrl.video import write_video
from mmrl.vlm import lengths, media, tiny_others
from mmrl.vlm.lengths import prompt_length
from mmrl.vlm.media import FrameRule, Video, load_media
from mmrl.vlm.models import TinyQwen3VL, set_bounds
from mmrl.vlm.prompts import PromptEncoder, PromptOptions
from mmrl.vlm.tiny import tiny_processor

QWEN = {
    "qwen2_vl": lambda: tiny_others.tiny_qwen2vl()[1],
    "qwen2_5_vl": lambda: tiny_others.tiny_qwen25vl()[1],
    "qwen3_vl": tiny_processor,
}
SIZES = ((56, 56), (28, 84), (150, 40), (33, 47), (200, 150), (20, 20))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def video(frames: int, height: int, width: int) -> np.ndarray:
    return np.stack([picture(height, width, seed) for seed in range(frames)])


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[Prompt]:
    folder = tmp_path_factory.mktemp("media")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(picture(90, 40)).save(folder / "turned.jpg", exif=turned)
    Image.fromarray(np.dstack([picture(30, 70), np.zeros((30, 70), np.uint8)])).save(folder / "clear.png")
    pytest.importorskip("av")
    write_video(folder / "clip.mp4", video(9, 60, 100), 4.0)
    return [
        Prompt("text", "Answer yes or no."),
        *(Prompt(f"one {size}", "How many red squares are there?", (picture(*size),)) for size in SIZES),
        Prompt("several", "Is <image> or <image> or <image> red?", tuple(picture(*size) for size in SIZES[1:4])),
        Prompt("files", "Which?", (folder / "turned.jpg", str(folder / "clear.png"))),
        *(Prompt(f"video {n}", "What next?", (video(n, 50, 80),), meta={"fps": 3}) for n in (2, 5, 12)),
        Prompt("both", "Is <image> in <video>?", (picture(56, 56), video(4, 56, 84)), meta={"fps": 2}),
        Prompt("clip", "See <video> and <video>.", (folder / "clip.mp4", video(8, 30, 30)), meta={"fps": 2}),
    ]


@pytest.mark.parametrize("system", [None, "You look closely."])
@pytest.mark.parametrize("kind", QWEN)
def test_lengths_are_those_of_the_encoding(
    kind: str, system: str | None, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = PromptEncoder(QWEN[kind](), PromptOptions(system=system))
    expected = [len(encoder.encode(prompt)) for prompt in prompts]
    assert len(set(expected)) > 8
    monkeypatch.setattr(encoder, "_encode", lambda *_: pytest.fail("a prompt was encoded"))
    monkeypatch.setattr(media, "read_image", lambda *_: pytest.fail("a picture was decoded"))
    assert [prompt_length(encoder, prompt) for prompt in prompts] == expected


@pytest.mark.parametrize("kind", QWEN)
def test_one_frame_of_a_video_is_decoded(kind: str, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def opened(path: Path) -> Any:
        found = open_video(path)
        own = found.frames
        found.frames = lambda indices: (read.append(len(indices)), own(indices))[1]  # type: ignore[method-assign]
        return found

    open_video = media.open_video
    monkeypatch.setattr(media, "open_video", opened)
    prompt_length(PromptEncoder(QWEN[kind](), PromptOptions()), prompts[-1])
    assert read == [1]


def test_other_processors_encode(prompts: list[Prompt]) -> None:
    encoder = PromptEncoder(tiny_others.tiny_internvl()[1], PromptOptions())
    for prompt in prompts[:-1]:  # two videos of different lengths are more than this processor takes
        assert prompt_length(encoder, prompt) == len(encoder.encode(prompt))
    budget = QWEN["qwen2_vl"]()
    budget.video_processor.cap_pixels_per_frame, budget.video_processor.max_video_tokens = True, 40
    encoder = PromptEncoder(budget, PromptOptions())
    for prompt in prompts[-5:]:
        assert prompt_length(encoder, prompt) == len(encoder.encode(prompt))
    assert not lengths._counts(budget)


def test_what_cannot_be_encoded_is_named(tmp_path: Path) -> None:
    encoder = PromptEncoder(tiny_processor(), PromptOptions())
    (tmp_path / "a.png").write_bytes(b"no picture")
    for prompt, message in (
        (Prompt("thin", "?", (picture(1, 500),)), "prompt 'thin': Qwen3VLProcessor refuses it: absolute aspect ratio"),
        (Prompt("p", "?", (tmp_path / "a.png",)), r"prompt 'p', medium 1: .*a\.png is not a picture that can be read"),
        (Prompt("p", "<image>", ()), "its text has 1 <image>"),
    ):
        with pytest.raises(UserError, match=message):
            prompt_length(encoder, prompt)


def test_a_policy_leaves_out_what_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = TinyQwen3VL(max_prompt_tokens=40)
    policy.load("cpu")
    some = [Prompt("short", "?", (picture(56, 56),)), Prompt("long", "?", tuple(picture(112, 112) for _ in range(3)))]
    expected = len(policy.encoder.encode(some[1]))
    monkeypatch.setattr(policy.encoder, "_encode", lambda *_: pytest.fail("a prompt was encoded"))
    assert policy.fits(some) == ([some[0]], {"long": expected})


# ---- bounds of frames


@pytest.mark.parametrize(("least", "most"), [(None, 3000), (4000, None), (2000, 5000)])
@pytest.mark.parametrize("kind", QWEN)
def test_every_frame_is_within_the_bounds(kind: str, least: int | None, most: int | None) -> None:
    processor = QWEN[kind]()
    processor.video_processor.size["longest_edge"] = 10**6
    set_bounds(processor, least, most)
    encoder = PromptEncoder(processor, PromptOptions(frames=FrameRule(fps=2, min_pixels=least, max_pixels=most)))
    for frames in (2, 8):
        for height, width in ((150, 40), (120, 160), (30, 30)):
            prompt = Prompt("p", "?", (video(frames, height, width),), meta={"fps": 2})
            encoded = encoder.encode(prompt)
            time, rows, columns = encoded.media["video_grid_thw"][0].tolist()
            assert time == frames // 2
            assert (least or 0) <= rows * columns * 14**2 <= (most or 10**6), (frames, height, width)
            assert prompt_length(encoder, prompt) == len(encoded)
            assert encoder.encode(prompt, "masked").media["video_grid_thw"].tolist() == [[time, rows, columns]]


def test_the_budget_of_a_whole_video_stays() -> None:
    processor = tiny_processor()
    processor.video_processor.size["longest_edge"] = 40_000
    set_bounds(processor, None, 10_000)
    encoder = PromptEncoder(processor, PromptOptions(frames=FrameRule(max_pixels=10_000)))
    for frames, most in ((2, 10_000), (20, 2000)):
        prompt = Prompt("p", "?", (video(frames, 300, 300),), meta={"fps": 2})
        _, rows, columns = encoder.encode(prompt).media["video_grid_thw"][0].tolist()
        assert most / 3 < rows * columns * 14**2 <= most
    assert isinstance(load_media(prompt, FrameRule())[0], Video)
