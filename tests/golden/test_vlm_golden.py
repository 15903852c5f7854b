"""Vision-language inputs against numbers of the original implementations (`data/`, each file names its source)."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmrl.rollout import Prompt
from mmrl.vlm.media import FrameRule, Video
from mmrl.vlm.models import set_bounds
from mmrl.vlm.prompts import PromptEncoder, PromptOptions
from mmrl.vlm.tiny import tiny_qwen3vl
from mmrl.vlm.tiny_others import tiny_qwen2vl, tiny_qwen25vl
from mmrl.vlm.views import Masked, blacken

DATA = Path(__file__).parent / "data"


def load(name: str) -> dict[str, Any]:
    return json.loads((DATA / f"{name}.json").read_text())


# ---- token counts


def processor(factor: int) -> Any:
    """Real processors of both generations: 14-pixel patches of Qwen2-VL, 16-pixel patches of Qwen3-VL."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLVideoProcessor

    found = tiny_qwen3vl()[1]
    found.image_processor = Qwen2VLImageProcessor(patch_size=factor // 2)
    found.video_processor = Qwen3VLVideoProcessor(cap_pixels_per_frame=False)
    return found


@pytest.mark.parametrize("case", load("qwen_vl_token_counts")["outputs"]["image"])
def test_token_counts_of_images(case: str) -> None:
    golden = load("qwen_vl_token_counts")
    options = {key: int(value) for key, value in (part.split("=") for part in case.split("|"))}
    real = processor(options["factor"])
    set_bounds(real, options["min"], options["max"])
    encoder = PromptEncoder(real, PromptOptions())
    rows = golden["outputs"]["image"][case]
    for (height, width), (new_height, new_width, grid_h, grid_w, tokens) in zip(
        golden["inputs"]["sizes_hw"], rows, strict=True
    ):
        if height * width > 1_000_000:
            continue  # the same rule for millions of pixels: only slow
        encoded = encoder.encode(Prompt("p", "?", (np.zeros((height, width, 3), np.uint8),)))
        assert encoded.media["image_grid_thw"].tolist() == [[1, grid_h, grid_w]]
        assert int((encoded.kinds == 1).sum()) == tokens
        assert (grid_h * options["factor"] // 2, grid_w * options["factor"] // 2) == (new_height, new_width)


def test_sizes_of_qwen3_videos() -> None:
    golden = load("qwen_vl_token_counts")
    real = processor(32)
    real.video_processor.size = {"shortest_edge": 131072, "longest_edge": 786432}
    encoder = PromptEncoder(real, PromptOptions(frames=FrameRule(fps=1.0, least=2, most=1000)))
    for (frames, height, width), expected in zip(
        golden["inputs"]["video"], golden["outputs"]["qwen3_video_factor32_min131072_max786432"], strict=True
    ):
        if frames * height * width > 20_000_000:
            continue  # the same rule on a long video: only slow
        pixels = np.zeros((frames, height, width, 3), np.uint8)
        video = Video(pixels, 1.0, tuple(range(frames)), frames)
        grid = encoder._encode(Prompt("p", "?"), [video]).media["video_grid_thw"]
        assert [int(grid[0, 1]) * 16, int(grid[0, 2]) * 16] == expected


# ---- positions

MROPE = load("mrope_position_ids")


def positions(model: Any, ids: list[int], **grids: Any) -> torch.Tensor:
    """`get_rope_index` of the model itself on the golden's token ids, which stand for text, image and video."""
    names = MROPE["inputs"]["token_ids"]
    kinds = [{names["<|image_pad|>"]: 1, names["<|video_pad|>"]: 2}.get(token, 0) for token in ids]
    tensors = {key: torch.tensor(value) for key, value in grids.items()}
    found, _ = model.model.get_rope_index(torch.tensor([ids]), mm_token_type_ids=torch.tensor([kinds]), **tensors)
    return found[:, 0]


@pytest.mark.parametrize("family", ["qwen2", "qwen25", "qwen3"])
@pytest.mark.parametrize("case", ["one_image", "text", "two_images_left_pad"])
def test_positions_of_images(family: str, case: str) -> None:
    model = {"qwen2": tiny_qwen2vl, "qwen25": tiny_qwen25vl, "qwen3": tiny_qwen3vl}[family]()[0]
    given = MROPE["inputs"][case]
    ids, grids = (given, {}) if case == "text" else (given["ids"], {"image_grid_thw": given["image_grid_thw"]})
    expected = torch.tensor(MROPE["outputs"][case])
    if case == "two_images_left_pad":
        # The original gives padding position 1; here a prompt is never padded on its left, so padding has no position.
        skip = given["attention_mask"].index(1)
        ids, expected = ids[skip:], expected[:, skip:]
    assert torch.equal(positions(model, ids, **grids), expected)


@pytest.mark.parametrize(("seconds", "case"), [(1.0, "qwen25_video_spg1"), (0.5, "qwen25_video_spg0_5")])
def test_positions_of_a_qwen25_video(seconds: float, case: str) -> None:
    given = MROPE["inputs"]["qwen25_video"]
    model = tiny_qwen25vl()[0]
    assert model.config.vision_config.tokens_per_second == given["tokens_per_second"]
    found = positions(model, given["ids"], video_grid_thw=given["video_grid_thw"], second_per_grid_ts=[seconds])
    expected = torch.tensor(MROPE["outputs"][case])
    assert torch.equal(found[:, :-2], expected[:, :-2])
    # Differs: the original goes on behind the video at max + 1 over all three axes. transformers 5.23 goes on behind its
    # height and width alone (4 here), whatever the time axis has reached. The model's own positions are what is used.
    assert (expected[:, -2] == expected[:, :-2].max() + 1).all()
    assert found[:, -2:].tolist() == [[4, 5]] * 3


def test_positions_of_a_qwen3_video() -> None:
    given = MROPE["inputs"]["qwen3_video"]
    found = positions(tiny_qwen3vl()[0], given["ids"], video_grid_thw=given["video_grid_thw"])
    assert torch.equal(found, torch.tensor(MROPE["outputs"]["qwen3_video_timestamp_separated"]))


# ---- views


def test_papo_patch_mask() -> None:
    golden = load("papo_patch_mask")
    given, params = golden["inputs"], golden["params"]
    black = np.array(golden["outputs"]["patch_black"], bool)
    pixels = np.full((given["height"], given["width"], 3), given["value"], np.uint8)
    np.random.seed(given["numpy_seed"])
    draws = np.random.rand(*black.shape) < params["black_prob"]
    assert np.array_equal(draws, black)  # one uniform number per patch, row by row
    seen = blacken(pixels, black, params["patch_size"])
    for row, column in itertools.product(range(given["height"]), range(given["width"])):
        dark = black[row // params["patch_size"], column // params["patch_size"]]
        assert (seen[row, column] == (0 if dark else given["value"])).all()
    # `Masked` draws from a generator of its own seed instead of numpy's global one, in the same order.
    own = Masked(ratio=params["black_prob"], patch=params["patch_size"]).apply(pixels, np.random.default_rng(0))
    expected = np.random.default_rng(0).random(black.shape) < params["black_prob"]
    assert np.array_equal(own, blacken(pixels, expected, params["patch_size"]))
