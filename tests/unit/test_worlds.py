"""Moving shapes and shape edits as sources and rewards."""

from __future__ import annotations

import numpy as np
import pytest

from mmrl.components import build
from mmrl.data.moving_shapes.captions import captions, parse, write
from mmrl.errors import UserError
from mmrl.reward import RewardSet
from mmrl.rollout import FAILED, OK, SKIPPED, Prompt, Sample


def test_the_grammar_of_motion_parses_and_writes_back() -> None:
    assert len(captions("one")) == 48 and len(captions("two")) == 528 and len(set(captions())) == 576
    assert all(write(parse(caption)) == caption for caption in captions())
    for text in ("a red circle moves", "a red circle moves right and a red circle stays", "a red circle left of a cat"):
        with pytest.raises(ValueError, match="not a caption of moving shapes"):
            parse(text)


def test_parts_of_motion_are_disjoint_and_have_both_kinds() -> None:
    parts = {part: build("prompts", {"name": "moving_shapes", "split": part}).load() for part in ("train", "held_out")}
    texts = {part: {prompt.text for prompt in prompts} for part, prompts in parts.items()}
    assert not texts["train"] & texts["held_out"] and len(texts["train"] | texts["held_out"]) == 576
    assert sum(prompt.meta["kind"] == "one" for prompt in parts["held_out"]) == 10
    with pytest.raises(UserError, match="validation part of the moving_shapes is empty"):
        build("prompts", {"name": "moving_shapes"}).load("validation")


def test_a_first_frame_is_a_function_of_the_caption() -> None:
    spec = {"name": "moving_shapes", "kind": "two", "first_frame": True}
    whole, held_out = build("prompts", spec).load(), build("prompts", spec | {"split": "held_out"}).load()
    by_id = {prompt.id: prompt for prompt in whole}
    for prompt in held_out:
        (frame,) = prompt.media
        assert frame.shape == (24, 24, 3) and np.array_equal(frame, by_id[prompt.id].media[0])
        assert np.shape(prompt.target["start"]) == (2, 2)


def test_examples_of_motion_are_right_and_reproducible() -> None:
    spec = {"name": "moving_shapes", "first_frame": True, "frames": 5, "fps": 4, "split": "train"}
    stream, again = build("examples", spec).open(3), build("examples", spec).open(3)
    samples = [stream.example(index) for index in range(20)]
    assert build("reward", {"name": "moving_shapes", "mode": "strict"}).score(samples) == [1.0] * 20
    assert all(np.array_equal(sample.video, again.example(index).video) for index, sample in enumerate(samples))
    assert all(
        np.array_equal(sample.video[0], sample.prompt.media[0]) and sample.meta["fps"] == 4 for sample in samples
    )
    held_out = {prompt.text for prompt in build("prompts", {"name": "moving_shapes", "split": "held_out"}).load()}
    assert not held_out & {sample.prompt.text for sample in samples}


def test_edits_are_functions_of_seed_and_number() -> None:
    few, many = (build("prompts", {"name": "shape_edits", "number": number}).load() for number in (20, 60))
    assert [prompt.text for prompt in few] == [prompt.text for prompt in many[:20]]
    assert all(
        np.array_equal(a, b) for p, q in zip(few, many, strict=False) for a, b in zip(p.media, q.media, strict=True)
    )
    assert {prompt.meta["kind"] for prompt in many} == {"recolor", "move", "add", "insert", "remove"}
    assert all(len(prompt.media) == 1 + (prompt.meta["kind"] == "insert") for prompt in many)
    other = build("prompts", {"name": "shape_edits", "number": 20, "seed": 1}).load()
    assert [prompt.target for prompt in few] != [prompt.target for prompt in other]


def test_parts_of_edits_are_disjoint_by_instruction_where_asked() -> None:
    split = {"by": "text", "held_out": 0.3}
    parts = [
        build("prompts", {"name": "shape_edits", "split": split | {"part": part}}).load()
        for part in ("train", "held_out")
    ]
    assert len(parts[0]) + len(parts[1]) == 500
    assert not {prompt.text for prompt in parts[0]} & {prompt.text for prompt in parts[1]}


def test_examples_of_edits_are_right() -> None:
    stream = build("examples", {"name": "shape_edits", "kinds": ["move", "insert"]}).open(0)
    samples = [stream.example(index) for index in range(20)]
    assert build("reward", {"name": "shape_edits", "mode": "strict"}).score(samples) == [1.0] * 20
    assert {sample.prompt.meta["kind"] for sample in samples} == {"move", "insert"}


@pytest.mark.parametrize(
    ("name", "target", "shown", "error"),
    [
        ("moving_shapes", None, {"video": np.zeros((3, 24, 24, 3), np.uint8)}, FAILED),
        ("moving_shapes", {"kind": "count"}, {"video": np.zeros((3, 24, 24, 3), np.uint8)}, FAILED),
        ("moving_shapes", parse(captions()[0]), {"video": np.zeros((1, 24, 24, 3), np.uint8)}, FAILED),
        ("moving_shapes", parse(captions()[0]), {"video": np.zeros((3, 16, 24, 3), np.uint8)}, FAILED),
        ("moving_shapes", parse(captions()[0]), {"images": (np.zeros((24, 24, 3), np.uint8),)}, SKIPPED),
        ("moving_shapes", parse(captions()[0]), {"video": np.zeros((3, 24, 24, 3), np.uint8)}, OK),
        ("shape_edits", {"kind": "move", "subject": "square"}, {"images": (np.zeros((24, 24, 3), np.uint8),)}, FAILED),
        ("shape_edits", None, {"images": (np.zeros((24, 24, 3), np.uint8),)}, FAILED),
    ],
)
def test_what_cannot_be_judged_is_no_number(name: str, target: object, shown: dict, error: int) -> None:
    rewards = RewardSet({"r": (build("reward", {"name": name}), 1.0)})
    scores = rewards.score([Sample(Prompt("p", "t", target=target), **shown)])
    assert scores.status[0, 0] == error
