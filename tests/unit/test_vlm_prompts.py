"""Prompts, media and views: what the model is told, and how the user hears that something does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmrl.errors import UserError
from mmrl.rollout import Prompt
from mmrl.vlm.media import FrameRule, Video, frame_indices, load_media
from mmrl.vlm.models import set_bounds
from mmrl.vlm.prompts import PromptEncoder, PromptOptions
from mmrl.vlm.tiny import tiny_processor
from mmrl.vlm.views import VIEWS, Blank, Masked, Noisy, Perturbed, Views


@pytest.fixture(scope="module")
def processor() -> Any:
    return tiny_processor()


@pytest.fixture
def encoder(processor: Any) -> PromptEncoder:
    return PromptEncoder(processor, PromptOptions())


def picture(seed: int = 0, height: int = 56, width: int = 56) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def text_of(encoder: PromptEncoder, prompt: Prompt) -> str:
    return encoder.tokenizer.decode(encoder.encode(prompt).input_ids)


IMAGE = "<|vision_start|>" + "<|image_pad|>" * 4 + "<|vision_end|>"


# ---- prompts


def test_media_stand_where_the_text_says_or_before_it(encoder: PromptEncoder) -> None:
    pictures = (picture(0), picture(1))
    before = text_of(encoder, Prompt("p", "Which is red?", pictures))
    assert f"user\n{IMAGE}{IMAGE}Which is red?<|im_end|>" in before
    inside = text_of(encoder, Prompt("p", "Is <image> redder than <image>?", pictures))
    assert f"user\nIs {IMAGE} redder than {IMAGE}?<|im_end|>" in inside


def test_encoded_prompts_say_what_every_token_is(encoder: PromptEncoder) -> None:
    encoded = encoder.encode(Prompt("p", "<image>and <image>", (picture(0), picture(1, 28, 84))))
    assert encoded.input_ids.dtype == encoded.kinds.dtype == torch.int64
    assert len(encoded) == len(encoded.kinds) and encoded.input_ids.dim() == 1
    assert int((encoded.kinds == 1).sum()) == 4 + 3
    assert encoded.media["image_grid_thw"].tolist() == [[1, 4, 4], [1, 2, 6]]
    assert encoded.media["pixel_values"].shape == (16 + 12, 3 * 2 * 14 * 14)
    text = encoder.encode(Prompt("t", "Answer yes or no."))
    assert not text.media and not text.kinds.any()


def test_the_same_as_asking_the_processor_itself(encoder: PromptEncoder) -> None:
    prompt = Prompt("p", "How many?", (picture(),))
    encoded = encoder.encode(prompt)
    conversation = [
        {
            "role": "user",
            "content": [{"type": "image", "image": Image.fromarray(picture())}, {"type": "text", "text": "How many?"}],
        }
    ]
    own = encoder.processor.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert torch.equal(own["input_ids"][0], encoded.input_ids)
    assert torch.equal(own["pixel_values"], encoded.media["pixel_values"])
    assert torch.equal(own["mm_token_type_ids"][0], encoded.kinds)


@pytest.mark.parametrize(
    ("text", "count", "message"),
    [
        (
            "<image> and <image>",
            1,
            "prompt 'p': its text has 2 <image> and 0 <video>, but it comes with 1 images and 0 videos",
        ),
        ("<video>", 1, "prompt 'p': its text has 0 <image> and 1 <video>, but it comes with 1 images"),
        ("<image>", 0, "prompt 'p': its text has 1 <image> and 0 <video>, but it comes with 0 images"),
        (
            "a <|image_pad|> here",
            1,
            r"prompt 'p': its text holds a model's own placeholder <\|image_pad\|>; write <image>",
        ),
    ],
)
def test_media_that_do_not_fit_the_text(encoder: PromptEncoder, text: str, count: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        encoder.encode(Prompt("p", text, tuple(picture(i) for i in range(count))))


def test_a_template_that_drops_the_image_is_found_out() -> None:
    processor = tiny_processor()
    processor.chat_template = "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"
    encoder = PromptEncoder(processor, PromptOptions())
    with pytest.raises(
        UserError, match="prompt 'p' has 1 images, but the model's chat template writes 0 image placeholders"
    ):
        encoder.encode(Prompt("p", "How many?", (picture(),)))


def test_a_processor_that_refuses_a_picture_names_the_prompt(encoder: PromptEncoder) -> None:
    with pytest.raises(UserError, match="prompt 'thin': Qwen3VLProcessor refuses it: absolute aspect ratio"):
        encoder.encode(Prompt("thin", "?", (picture(0, 1, 500),)))


def test_bounds_of_a_picture_belong_to_processors_that_count_pixels(processor: Any) -> None:
    own = tiny_processor()
    set_bounds(own, 56 * 56, None)
    encoder = PromptEncoder(own, PromptOptions())
    assert encoder.encode(Prompt("p", "?", (picture(0, 28, 28),))).media["image_grid_thw"].tolist() == [[1, 4, 4]]
    with pytest.raises(UserError, match="is more than max_pixels 12544"):
        set_bounds(own, 10**6, None)

    class Other:
        image_processor = type("SquareProcessor", (), {"size": {"height": 32, "width": 32}})()

    with pytest.raises(UserError, match="min_pixels and max_pixels do not apply to SquareProcessor"):
        set_bounds(Other(), 100, None)


# ---- media


def test_files_are_read_as_they_look(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    found = load_media(Prompt("p", "?", (str(tmp_path / "a.png"), tmp_path / "a.png", picture())), FrameRule())
    assert all(np.array_equal(item, picture()) for item in found)
    Image.fromarray(np.dstack([picture(), np.zeros((56, 56), np.uint8)])).save(tmp_path / "clear.png")
    assert (load_media(Prompt("p", "?", (tmp_path / "clear.png",)), FrameRule())[0] == 255).all()


@pytest.mark.parametrize(
    ("media", "message"),
    [
        (3, "prompt 'p', medium 1 is a int; expected a uint8 array or the path of a file"),
        (np.zeros((4, 4, 3)), r"prompt 'p', medium 1 is an array \(4, 4, 3\) of float64; expected uint8"),
        (np.zeros((4, 4), np.uint8), r"array \(4, 4\) of uint8; expected uint8 \(H, W, 3\)"),
        ("nowhere.png", "prompt 'p', medium 1: no file .*nowhere.png"),
        (
            np.zeros((4, 8, 8, 3), np.uint8),
            "is a video, so the prompt's meta must say its frames per second: fps is None",
        ),
    ],
)
def test_media_that_cannot_be_read(media: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_media(Prompt("p", "?", (media,)), FrameRule())


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"a\.png is not a picture that can be read"):
        load_media(Prompt("p", "?", (tmp_path / "a.png",)), FrameRule())
    with pytest.raises(UserError, match=r"^prompt 'p', medium 1: .*a\.mp4 is not a video that can be read: [^\n]+$"):
        load_media(Prompt("p", "?", (tmp_path / "a.mp4",)), FrameRule())


@pytest.mark.parametrize("rule", [FrameRule(), FrameRule(fps=0.5), FrameRule(most=7), FrameRule(least=6, most=100)])
def test_frames_are_chosen_as_qwen_vl_utils_does(rule: FrameRule) -> None:
    utils = pytest.importorskip("qwen_vl_utils.vision_process")
    for total, fps in ((10, 5.0), (9, 30.0), (300, 29.97), (1001, 24.0), (4, 2.0)):
        wanted = {"fps": rule.fps, "min_frames": rule.least, "max_frames": min(rule.most, total)}
        count = utils.smart_nframes(wanted, total_frames=total, video_fps=fps)
        expected = torch.linspace(0, total - 1, count).round().long().tolist()
        found = frame_indices(total, fps, rule)
        assert len(found) == count and max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= 1
        assert found[0] == 0 and found[-1] == total - 1
    with pytest.raises(ValueError, match="at least 2 frames, this has 1"):
        frame_indices(1, 2.0, rule)


def test_a_video_file_is_read_at_its_frames(tmp_path: Path, encoder: PromptEncoder) -> None:
    av = pytest.importorskip("av")
    frames = np.stack([np.full((56, 56, 3), 12 * i, np.uint8) for i in range(16)])
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 56
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    prompt = Prompt("p", "What comes next?", (tmp_path / "clip.mp4",))
    video = load_media(prompt, FrameRule())[0]
    assert isinstance(video, Video)
    assert video.fps == pytest.approx(8) and video.total == 16 and video.indices == frame_indices(16, 8.0, FrameRule())
    assert video.indices == (0, 5, 10, 15)
    assert abs(video.frames.astype(int).mean((1, 2, 3)) - 12 * np.array(video.indices)).max() < 6
    same = encoder.encode(Prompt("p", prompt.text, (frames,), meta={"fps": 8}))
    from_file = encoder.encode(prompt)
    assert torch.equal(from_file.input_ids, same.input_ids) and int((same.kinds == 2).sum()) == 8
    assert (from_file.media["pixel_values_videos"] - same.media["pixel_values_videos"]).abs().max() < 0.1
    # two frames are one temporal patch, told apart by the time between them
    assert "<0.3 seconds>" in encoder.tokenizer.decode(same.input_ids) and "<1.6 seconds>" in text_of(encoder, prompt)


# ---- views


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("shape", [(42, 45, 3), (3, 28, 30, 3)])
def test_a_view_is_a_pure_function_of_pixels_and_seed(view: str, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8)
    before = pixels.copy()
    seen = Views().see(view, pixels, 7)
    assert seen.shape == shape and seen.dtype == np.uint8 and np.array_equal(pixels, before)
    assert np.array_equal(seen, Views().see(view, pixels, 7))
    assert np.array_equal(seen, pixels) == (view == "original")
    assert np.array_equal(seen, Views().see(view, pixels, 8)) == (view in ("original", "blank"))


def test_views_do_what_their_options_say() -> None:
    white, grey = np.full((280, 280, 3), 255, np.uint8), np.full((200, 200, 3), 128, np.uint8)
    masked = Views(masked=Masked(ratio=0.25, patch=7)).see("masked", white, 0)
    squares = masked.reshape(40, 7, 40, 7, 3)
    assert (squares == squares[:, :1, :, :1]).all() and set(np.unique(masked)) == {0, 255}
    assert (squares[:, 0, :, 0, 0] == 0).mean() == pytest.approx(0.25, abs=0.05)
    noisy = Views(noisy=Noisy(std=0.1)).see("noisy", grey, 0).astype(float)
    assert noisy.mean() == pytest.approx(128, abs=1) and noisy.std() == pytest.approx(25.5, abs=0.5)
    dark = np.full((200, 200, 3), 0, np.uint8)
    perturbed = Perturbed(keep=0.25)
    found = perturbed.apply(grey, np.random.default_rng(0)).astype(float) / 127.5 - 1
    assert found.mean() == pytest.approx(0, abs=0.02)
    shifted = Perturbed(keep=0.9).apply(dark, np.random.default_rng(0)).astype(float) / 127.5 - 1
    assert shifted.mean() == pytest.approx(-(0.9**0.5), abs=0.2)
    two = np.zeros((4, 4, 3), np.uint8)
    two[:2] = 100
    assert (Views().see("blank", two, 0) == 128).all()
    assert (Views(blank=Blank(colour="mean")).see("blank", two, 0) == 50).all()


def test_pictures_are_seen_at_the_models_size_through_every_view(encoder: PromptEncoder) -> None:
    large = np.full((448, 448, 3), 255, np.uint8)
    prompt = Prompt("p", "?", (large, picture()))
    plain, masked = encoder.encode(prompt), encoder.encode(prompt, "masked", seed=3)
    assert plain.media["image_grid_thw"].tolist() == [[1, 8, 8], [1, 4, 4]]  # at most 112 x 112
    assert torch.equal(plain.input_ids, masked.input_ids)
    assert torch.equal(plain.media["image_grid_thw"], masked.media["image_grid_thw"])
    patches = masked.media["pixel_values"][:64]
    flat = (patches.amax(1) - patches.amin(1)) < 2.5  # whole patches of one colour: black or white
    assert flat.all()
    black = patches.mean(1) < 0
    assert 0.4 < float(black.float().mean()) < 0.8
    assert torch.equal(encoder.encode(prompt, "masked", seed=3).media["pixel_values"], masked.media["pixel_values"])
    other = encoder.encode(prompt, "masked", seed=4)
    assert not torch.equal(other.media["pixel_values"], masked.media["pixel_values"])
