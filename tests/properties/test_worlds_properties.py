"""Moving shapes and shape edits: what is drawn is right, and every other world is wrong."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.components import build
from mmrl.data.moving_shapes import captions as moving
from mmrl.data.moving_shapes.clip import render as render_clip
from mmrl.data.moving_shapes.clip import sample_clip
from mmrl.data.shape_edits.edits import KINDS, Edit, sample_task
from mmrl.data.shapes.draw import render
from mmrl.data.shapes.world import COLORS, Item, Scene
from mmrl.rollout import Prompt, Sample

SEEDS = st.integers(0, 2**32 - 1)
CAPTIONS = st.sampled_from(moving.captions())
MODES = ("dense", "exact", "strict")


def judged(name: str, sample: Sample, modes: tuple[str, ...] = MODES) -> list[float]:
    return [build("reward", {"name": name, "mode": mode}).score([sample])[0] for mode in modes]


def clip(caption: str, seed: int, frames: int = 9) -> np.ndarray:
    return render_clip(sample_clip(moving.parse(caption), np.random.default_rng(seed)), frames)


def video(caption: str, frames: np.ndarray, **target: object) -> Sample:
    return Sample(Prompt("p", caption, target=moving.parse(caption) | target), video=frames)


@settings(deadline=None, max_examples=60)
@given(CAPTIONS, SEEDS, st.sampled_from([2, 5, 9, 17, 33]))
def test_a_drawn_clip_is_right_at_any_length(caption: str, seed: int, frames: int) -> None:
    tracks = sample_clip(moving.parse(caption), np.random.default_rng(seed))
    found = video(caption, render_clip(tracks, frames), start=[track.centre for track in tracks])
    assert judged("moving_shapes", found) == [1, 1, 1]
    assert judged("moving_shapes", found, ("clean",))[0] > -1e-6


@settings(deadline=None, max_examples=60)
@given(CAPTIONS, CAPTIONS, SEEDS)
def test_a_clip_of_another_caption_is_wrong(caption: str, other: str, seed: int) -> None:
    if caption != other:
        dense, exact, strict = judged("moving_shapes", video(caption, clip(other, seed)))
        assert dense < 1 and exact == strict == 0


@settings(deadline=None, max_examples=30)
@given(CAPTIONS, SEEDS, st.integers(0, 8))
def test_every_flaw_of_a_clip_costs(caption: str, seed: int, at: int) -> None:
    right = clip(caption, seed)
    flaws = {
        "still": np.repeat(right[:1], 9, axis=0),
        "backwards": right[::-1].copy(),
        "jumps": np.concatenate([np.repeat(right[:1], 8, axis=0), right[8:]]),
        "returns": np.concatenate([right[::2], right[6::-2]]),
        "one empty frame": np.where(np.arange(9)[:, None, None, None] == at, right[0, 0, 0] * 0, right),
    }
    for name, frames in flaws.items():
        dense, exact, strict = judged("moving_shapes", video(caption, frames))
        assert dense < 1 and exact == strict == 0, name


def test_a_video_must_start_at_its_first_frame() -> None:
    caption = "a red circle moves right"
    frames = clip(caption, 1)
    ((x, y),) = [track.centre for track in sample_clip(moving.parse(caption), np.random.default_rng(1))]
    assert judged("moving_shapes", video(caption, frames, start=[[x + 2, y]])) == [1, 1, 1]
    assert judged("moving_shapes", video(caption, frames, start=[[x + 3, y]])) == [0.5, 0, 0]


def test_dense_rises_with_what_is_right_about_a_clip() -> None:
    caption = "a red circle moves right"
    right = clip(caption, 1)
    still, other = np.repeat(right[:1], 9, axis=0), clip("a blue square moves right", 1)
    half = np.concatenate([right[:3], np.repeat(right[2:3], 6, axis=0)])
    scores = [judged("moving_shapes", video(caption, frames))[0] for frames in (other, still, half, right)]
    assert scores == sorted(scores) and len(set(scores)) == 4 and scores[1] == 0.5


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(KINDS), SEEDS)
def test_a_drawn_edit_is_right_and_its_source_is_not(kind: str, seed: int) -> None:
    task = sample_task(kind, np.random.default_rng(seed))
    prompt = Prompt("p", task.edit.instruction, target=json.loads(json.dumps(task.target())))
    assert judged("shape_edits", Sample(prompt, images=(render(task.after),)), (*MODES, "keep")) == [1, 1, 1, 1]
    dense, exact, strict, keep = judged("shape_edits", Sample(prompt, images=(render(task.before),)), (*MODES, "keep"))
    assert 0 < dense < 1 and exact == strict == 0 and keep == 1


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(KINDS), SEEDS)
def test_every_other_world_after_an_edit_is_wrong(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    task = sample_task(kind, rng)
    prompt = Prompt("p", task.edit.instruction, target=task.target())
    items = list(task.after.items)
    at = int(rng.integers(len(items)))
    free = [cell for cell in range(9) if cell not in {item.cell for item in items}]
    recolored = next(color for color in COLORS if color != items[at].color)
    worlds = {
        "one less": [*items[:at], *items[at + 1 :]],
        "one more": [*items, Item("red", "square", free[0])],
        "recoloured": [*items[:at], dataclasses.replace(items[at], color=recolored), *items[at + 1 :]],
        "empty": [],
    }
    for name, world in worlds.items():
        dense, exact, strict = judged("shape_edits", Sample(prompt, images=(render(Scene(tuple(world))),)))
        assert dense < 1 and exact == strict == 0, name
    kept = next((item for item in task.before.items if item in items and item.shape != task.edit.subject), None)
    if kept is not None:  # the rest has moved, though the change is there
        elsewhere = [dataclasses.replace(kept, cell=free[-1]) if item == kept else item for item in items]
        dense, exact, strict = judged("shape_edits", Sample(prompt, images=(render(Scene(tuple(elsewhere))),)))
        assert dense < 1 and exact == strict == 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_of_another_direction_colour_or_subject_is_wrong(kind: str) -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        one, two = sample_task(kind, rng), sample_task(kind, rng)
        prompt = Prompt("p", one.edit.instruction, target=one.target())
        worlds = [{(item.color, item.shape, item.cell) for item in task.after.items} for task in (one, two)]
        if worlds[0] != worlds[1]:
            assert judged("shape_edits", Sample(prompt, images=(render(two.after),)))[1:] == [0, 0]


def test_an_edit_says_what_it_asks() -> None:
    assert Edit("move", "square", "right").instruction == "move the square to the right"
    assert Edit("add", "square", "up", "red", "triangle").instruction == "add a red triangle above the square"
    with pytest.raises(ValueError, match="no edit of the shapes world"):
        Edit("recolor", "square", color="pink")


def test_what_stays_must_stay() -> None:
    caption = "a red circle moves right and a blue square stays"
    a, b = sample_clip(moving.parse(caption), np.random.default_rng(2))
    frames = render_clip((a, dataclasses.replace(b, end=(b.end[0], b.end[1] + (4 if b.end[1] < 12 else -4)))), 9)
    dense, exact, strict = judged("moving_shapes", video(caption, frames))
    assert dense < 1 and exact == strict == 0


def test_something_is_added_on_the_side_that_is_asked_for() -> None:
    before = Scene((Item("blue", "square", 4),))
    target = {"kind": "add", "subject": "square", "direction": "up", "color": "red", "shape": "circle"}
    prompt = Prompt("p", "add a red circle above the square", target=target | {"before": before.to_json()})
    scores = {
        cell: judged(
            "shape_edits", Sample(prompt, images=(render(Scene((*before.items, Item("red", "circle", cell)))),))
        )
        for cell in (1, 3, 7)
    }
    assert scores == {1: [1, 1, 1], 3: [0.75, 0, 0], 7: [0.75, 0, 0]}


def test_a_speck_fails_strict_only() -> None:
    caption = "a red circle moves right"
    frames = clip(caption, 1)
    frames[4, 0, 0] = 255
    assert judged("moving_shapes", video(caption, frames)) == [1, 1, 0]
    task = sample_task("remove", np.random.default_rng(0))
    picture = render(task.after)
    picture[(picture == picture[0, 0]).all(-1).nonzero()[0][:1], 23] = 255
    prompt = Prompt("p", "", target=task.target())
    assert judged("shape_edits", Sample(prompt, images=(picture,))) == [1, 1, 0]
