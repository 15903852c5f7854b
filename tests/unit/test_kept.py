"""Kept samples: what is written is read again without a change, whole folders or none, the same from any number of ranks."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_policy import FakeGroup, Ones, SharedMail, ToyPolicy, gradients, stage

from mmrl.advantage.group import DrAdvantage
from mmrl.config.schema import KeepSection, RefillSection
from mmrl.errors import UserError
from mmrl.meter import Meter
from mmrl.objective.objective import Objective
from mmrl.replay import kept
from mmrl.replay.kept import Kept, due, read, steps, write
from mmrl.replay.plain import plain, unplain
from mmrl.rollout import FAILED, OK, SKIPPED, Prompt, Sample
from mmrl.stages.rl import RLWork

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers() | st.tuples(st.integers()), inner, max_size=3)
    ),
    max_leaves=8,
)
seeds = st.integers(0, 2**32 - 1)


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    media: list[Any] = []
    if draw(st.booleans()):
        media += [pixels(draw(seeds), height, width, 3), "/some/where.png", pixels(draw(seeds), 2, height, width, 3)]
    prompt = Prompt(draw(st.text(max_size=5)), draw(st.text()), tuple(media), draw(values), {"level": draw(values)})
    images = tuple(pixels(draw(seeds), height, width, 3) for _ in range(draw(st.integers(0, 2))))
    video = pixels(draw(seeds), 3, height, width, 3) if draw(st.booleans()) else None
    return Sample(
        prompt, draw(st.none() | st.text()), images, video, {"fps": draw(st.floats(1, 60)), "x": draw(values)}
    )


def filled(own: list[Sample], seed: int = 0, step: int = 10, **changed: Any) -> Kept:
    """`own` with numbers at hand."""
    random, n = np.random.default_rng(seed), len(own)
    status = random.choice([OK, FAILED, SKIPPED], (n, 2))
    return replace(
        Kept(
            step=step,
            drawn=n + 3,
            names=("a", "b"),
            weights=(0.1, 0.0),
            samples=own,
            group=np.arange(n) // 2,
            part=None,
            member=np.arange(n) % 2,
            parent=np.full(n, -1),
            place=np.zeros((n, 2), dtype=np.int64),
            values=np.where(status == OK, random.normal(size=(n, 2)), np.nan),
            status=status,
            total=np.where(random.random(n) < 0.3, np.nan, random.normal(size=n)),
            advantage=random.normal(size=n),
            extra={"length": random.random(n), "rac": np.full(n, np.nan)},
        ),
        **changed,
    )


def equal(a: Any, b: Any) -> bool:
    """Of the same types and values, all the way down."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return type(a) is type(b) and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (Kept, Sample, Prompt)):
        return equal(vars(a), vars(b))
    return bool(a == b) or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


@given(values)
def test_values_come_back_as_they_were(value: Any) -> None:
    assert equal(unplain(json.loads(json.dumps(plain(value)))), value)


def test_what_json_cannot_hold_is_refused() -> None:
    assert plain(np.float64(0.1)) == 0.1 and plain({"a": np.int32(2)}) == {"a": 2}
    with pytest.raises(TypeError, match="it holds a ndarray"):
        plain({"a": [np.zeros(2)]})


@settings(max_examples=30, deadline=None)
@given(st.lists(samples(), min_size=1, max_size=4), st.integers(0, 100), st.booleans(), st.booleans())
def test_what_is_read_is_what_was_written(own: list[Sample], seed: int, divided: bool, per_step: bool) -> None:
    numbers: dict[str, Any] = {"part": np.arange(len(own)) % 3} if divided else {}
    if per_step:
        numbers["advantage"] = np.random.default_rng(seed).normal(size=(len(own), 4))
    want = filled(own, seed, **numbers)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), want, FakeGroup())
        assert steps(Path(folder)) == {10: path} and sorted(p.name for p in Path(folder).iterdir()) == ["step_000010"]
        assert equal(read(path), want)


def shown(value: int, **meta: Any) -> Sample:
    return Sample(Prompt("p", "?"), images=(np.full((2, 2, 3), value, dtype=np.uint8),), meta=meta)


def test_equal_pictures_are_one_file_and_media_paths_stay_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = replace(shown(1), prompt=Prompt("p", "?", media=("a.png", Path("/b.png"))))
    path = write(tmp_path / "kept", filled([given, shown(1), shown(2)]), FakeGroup())
    assert len(list((path / "media").iterdir())) == 2
    assert read(path).samples[0].prompt.media == (str(tmp_path / "a.png"), "/b.png")


def test_what_cannot_be_stored(tmp_path: Path) -> None:
    path = write(tmp_path, filled([shown(1, latents={"x": np.zeros(2)}, tokens=3)]), FakeGroup())
    found = read(path)
    assert found.left_out == ("meta.latents",) and found.samples[0].meta == {"tokens": 3}
    broken = replace(shown(1), prompt=Prompt("p", "?", target={1, 2}))
    with pytest.raises(UserError, match=r"cannot store the target of prompt 'p': it holds a set"):
        write(tmp_path, filled([broken], step=11), FakeGroup())


def test_a_step_that_is_done_again_replaces_its_folder(tmp_path: Path) -> None:
    write(tmp_path, filled([shown(1), shown(2)]), FakeGroup())
    path = write(tmp_path, filled([shown(3)]), FakeGroup())
    assert [sample.images[0][0, 0, 0] for sample in read(path).samples] == [3]
    assert len(list((path / "media").iterdir())) == 1 and len(list(tmp_path.iterdir())) == 1


def test_a_crash_leaves_the_old_folder_and_no_half_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, filled([shown(1)]), FakeGroup())

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(kept, "write_json", full)
        write(tmp_path, filled([shown(2), shown(3)]), FakeGroup())
    assert steps(tmp_path).keys() == {10} and len(read(steps(tmp_path)[10]).samples) == 1
    write(tmp_path, filled([shown(4)], step=20), FakeGroup())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000010", "step_000020"]


def test_broken_folders_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, filled([shown(1), shown(2)]), FakeGroup())
    lines = (path / "samples.jsonl").read_text().splitlines(keepends=True)
    (path / "samples.jsonl").write_text(lines[0])
    with pytest.raises(UserError, match=r"samples.jsonl has 1 samples, and step.json says 2"):
        read(path)
    (path / "samples.jsonl").write_text(lines[0] + lines[1][:50])
    with pytest.raises(UserError, match=r"samples.jsonl cannot be read \(JSONDecodeError"):
        read(path)
    (path / "samples.jsonl").write_text("".join(lines))
    shutil.rmtree(path / "media")
    with pytest.raises(UserError, match=r"samples.jsonl cannot be read \(FileNotFoundError"):
        read(path)
    (path / "step.json").write_text('{"format": 9}')
    with pytest.raises(UserError, match="has format 9; this version reads 1"):
        read(path)


def test_which_steps_are_due() -> None:
    assert [step + 1 for step in range(12) if due(KeepSection(every=5), step)] == [1, 5, 10]
    assert [step + 1 for step in range(3) if due(KeepSection(every=1), step)] == [1, 2, 3]


def trained(
    folder: Path, world: int = 1, numbers: range = range(3), objective: Objective | None = None, **section: Any
) -> list[list[np.ndarray]]:
    """Steps of an rl stage on the toy policy, by `world` ranks; returns the gradients of each."""
    mail, found = SharedMail(world), [[] for _ in range(world)]  # type: ignore[var-annotated]

    def rank(number: int) -> None:
        policy, own = ToyPolicy(), stage(objective or Objective(DrAdvantage()), **section)
        own.rewards = {"ones": (Ones(), 1.0)}  # type: ignore[dict-item]
        work = RLWork(own, policy, FakeGroup(number, mail), 7, lambda line: None, folder)  # type: ignore[arg-type]
        found[number] = [one for step in numbers for one in gradients(policy, work.updates(step, Meter()))]

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_a_stage_keeps_what_it_was_told_to_and_trains_as_before(tmp_path: Path) -> None:
    with_it = trained(tmp_path / "a", keep_samples=KeepSection(every=2))
    assert equal(with_it, trained(tmp_path / "b")) and not (tmp_path / "b").exists()
    assert list(steps(tmp_path / "a")) == [1, 2]
    found = read(steps(tmp_path / "a")[2])
    assert (found.step, found.drawn, found.names, found.weights, found.whole) == (2, 24, ("ones",), (1.0,), True)
    assert found.group.tolist() == [k // 6 for k in range(24)] and found.member.tolist() == list(range(6)) * 4
    for row, sample in enumerate(found.samples):
        assert found.values[row, 0] == found.total[row] == float((sample.text or "").startswith("1"))
        assert found.extra["length"][row] == len(sample.text or "") and "answer" in sample.meta
        rows = found.group == found.group[row]
        assert found.advantage[row] == pytest.approx(found.total[row] - found.total[rows].mean(), abs=1e-12)
    assert found.advantage.any()


def test_first_groups_of_a_step(tmp_path: Path) -> None:
    """Whole ones, also where a group lies on two ranks (4 groups of 6 on 3 ranks)."""
    for world in (1, 3):
        folder = tmp_path / str(world)
        trained(folder, world, range(1), keep_samples=KeepSection(every=1, groups=2))
        found = read(steps(folder)[1])
        assert found.group.tolist() == [0] * 6 + [1] * 6 and not found.whole and found.drawn == 24


@pytest.mark.parametrize("refill", [None, RefillSection(max_rounds=3)])
def test_any_number_of_ranks_keeps_the_same(tmp_path: Path, refill: RefillSection | None) -> None:
    for world in (1, 2):
        trained(tmp_path / str(world), world, range(2), refill=refill, keep_samples=KeepSection(every=1))
    drawn = []
    for step, path in steps(tmp_path / "1").items():
        alone, both = read(path), read(tmp_path / "2" / path.name)
        assert set(both.place[:, 1].tolist()) == {0, 1} and set(alone.place[:, 1].tolist()) == {0}
        assert step == alone.step and equal(replace(both, place=alone.place), alone)
        drawn.append(alone.drawn)
    assert drawn == [24, 24] if refill is None else max(drawn) > 24


def test_ranks_that_share_no_disk_are_told(tmp_path: Path) -> None:
    mail, said = SharedMail(2), ["", ""]

    def rank(number: int) -> None:
        try:
            write(
                tmp_path / str(number), filled([shown(number)], place=np.array([[0, number]])), FakeGroup(number, mail)
            )
        except UserError as error:
            said[number] = str(error)

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("is missing: keep_samples needs a run.dir that all processes share" in line for line in said)
