"""The shapes world: what is drawn is what the verifier sees."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mmrl.data.shapes.captions import captions, parse, sample_scene, split, write
from mmrl.data.shapes.draw import render, sheet
from mmrl.data.shapes.verifier import (
    dense,
    detect,
    detect_batch,
    exact,
    palette_distance,
    strict,
    strict_batch,
)
from mmrl.data.shapes.world import BACKGROUND, PALETTE, Item, Scene

RED_LEFT_OF_BLUE = "a red circle left of a blue square"


def pictures(seed: int, each: int = 3) -> tuple[np.ndarray, list[dict]]:
    rng = np.random.default_rng(seed)
    targets = [parse(caption) for caption in captions() for _ in range(each)]
    return np.stack([render(sample_scene(target, rng)) for target in targets]), targets


def draw(*items: Item) -> np.ndarray:
    return render(Scene(items))


def judge(image: np.ndarray, caption: str) -> tuple[bool, float, bool]:
    found, target = detect(image), parse(caption)
    return exact(found, target), dense(found, target), strict(image, target)


def test_grammar_has_300_captions_that_parse_and_write_back() -> None:
    assert len(captions("count")) == 36 and len(captions("relation")) == 264
    assert len(set(captions())) == 300
    for caption in captions():
        target = json.loads(json.dumps(parse(caption)))
        assert write(target) == caption


@pytest.mark.parametrize(
    "text", ["", "one red circles", "two red circle", "a red circle above a red circle", "four red circles", "a dog"]
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a caption"):
        parse(text)


def test_split_is_disjoint_complete_stratified_and_deterministic() -> None:
    parts = split(3)
    assert parts == split(3) != split(4)
    assert not set(parts["train"]) & set(parts["held_out"])
    assert sorted(parts["train"] + parts["held_out"]) == sorted(captions())
    assert len(parts["held_out"]) == 60
    assert sum(parse(caption)["kind"] == "count" for caption in parts["held_out"]) == 7


def test_drawn_pictures_are_always_right() -> None:
    images, targets = pictures(0, each=5)
    found = detect_batch(images)
    assert all(exact(f, t) and dense(f, t) == 1.0 for f, t in zip(found, targets, strict=True))
    assert all(strict_batch(images, targets))
    assert palette_distance(images) < 1e-3
    assert found[:50] == [detect(image) for image in images[:50]]


def test_pixel_noise_is_forgiven() -> None:
    images, targets = pictures(1, each=1)
    noise = np.random.default_rng(2).normal(0, 0.25 * 127.5, images.shape)
    noisy = np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)
    assert np.mean([exact(f, t) for f, t in zip(detect_batch(noisy), targets, strict=True)]) > 0.99
    assert not any(strict_batch(noisy, targets))
    assert palette_distance(noisy) > 0.2


def test_a_caption_describes_no_picture_of_another_caption() -> None:
    rng = np.random.default_rng(5)
    targets = [parse(caption) for caption in captions()]
    images = np.stack([render(sample_scene(target, rng)) for target in targets])
    for found, own in zip(detect_batch(images), targets, strict=True):
        for other in targets:
            if exact(found, other) and other != own:  # "a left of b" may also show "a above b", "b above a": no others
                assert own["kind"] == other["kind"] == "relation"
                assert own["relation"] != other["relation"]
                assert {json.dumps(own[s]) for s in "ab"} == {json.dumps(other[s]) for s in "ab"}


def test_every_flaw_costs() -> None:
    a, b = Item("red", "circle", 3), Item("blue", "square", 5)
    assert judge(draw(a, b), RED_LEFT_OF_BLUE) == (True, 1.0, True)
    flawed = {
        "swapped": draw(Item("red", "circle", 5), Item("blue", "square", 3)),
        "extra": draw(a, b, Item("green", "square", 0)),
        "wrong colour": draw(a, Item("green", "square", 5)),
        "wrong shape": draw(a, Item("blue", "circle", 5)),
        "missing": draw(a),
        "empty": draw(),
    }
    scores = {}
    for flaw, image in flawed.items():
        right, scores[flaw], clean = judge(image, RED_LEFT_OF_BLUE)
        assert not right and not clean and scores[flaw] < 1, flaw
    assert scores["swapped"] > scores["wrong shape"] > scores["wrong colour"] > scores["missing"] > scores["empty"] == 0
    worse = draw(Item("red", "circle", 5), Item("blue", "square", 3), Item("green", "square", 0))
    assert judge(worse, RED_LEFT_OF_BLUE)[1] < scores["swapped"]


def test_counts_are_exact() -> None:
    circles = [Item("red", "circle", cell) for cell in (0, 4, 8)]
    scores = [judge(draw(*circles[:n]), "two red circles")[1] for n in range(4)]
    assert judge(draw(*circles[:2]), "two red circles") == (True, 1.0, True)
    assert scores[0] < scores[1] < scores[3] < scores[2] == 1.0


def test_a_speck_fails_strict_only() -> None:
    image = draw(Item("red", "circle", 3), Item("blue", "square", 5))
    image[1, 1] = PALETTE["green"]
    assert judge(image, RED_LEFT_OF_BLUE) == (True, 1.0, False)
    faint = draw(Item("red", "circle", 3), Item("blue", "square", 5))
    faint[20:, :] = np.array(BACKGROUND) + 60
    assert judge(faint, RED_LEFT_OF_BLUE) == (True, 1.0, False)


def test_wrong_tint_fails_strict_only() -> None:
    image = draw(Item("red", "circle", 3), Item("blue", "square", 5))
    image[(image == PALETTE["red"]).all(-1)] = (160, 60, 60)
    assert judge(image, RED_LEFT_OF_BLUE) == (True, 1.0, False)


def test_scenes_are_plain_data_and_checked() -> None:
    scene = sample_scene(parse("three green triangles"), np.random.default_rng(0))
    assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene
    with pytest.raises(ValueError, match="unknown object"):
        Item("pink", "circle", 0)
    with pytest.raises(ValueError, match="out of its cell"):
        Item("red", "circle", 0, dx=2)
    with pytest.raises(ValueError, match="share a cell"):
        Scene((Item("red", "circle", 0), Item("red", "square", 0)))


def test_related_objects_share_a_row_or_a_column() -> None:
    rng = np.random.default_rng(0)
    for caption, line in (
        ("a red circle left of a blue square", lambda cell: cell // 3),
        ("a red circle above a blue square", lambda cell: cell % 3),
    ):
        scenes = [sample_scene(parse(caption), rng) for _ in range(50)]
        assert all(line(scene.items[0].cell) == line(scene.items[1].cell) for scene in scenes)
        assert len({scene.items[0].cell for scene in scenes}) > 3


def test_sheet_shows_every_picture() -> None:
    images, _ = pictures(7, each=1)
    assert sheet(images[:5], columns=3, zoom=2, gap=1).size == (3 * 49 + 1, 2 * 49 + 1)
