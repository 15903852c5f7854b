"""Video puzzles: files come back as they were written, what is shown is what is asked, right answers are right."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import json
import re
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import ndimage

from mmrl import video
from mmrl.data.puzzles import clips, orders
from mmrl.data.puzzles.anomalies import KINDS, MOTION_KINDS, PICTURE_KINDS, perturbed
from mmrl.data.puzzles.clips import VideoMaker, moving_shapes, through_file, video_files
from mmrl.data.puzzles.counting_video import CountingVideo, mean_credit
from mmrl.data.puzzles.draw import PAPER
from mmrl.data.puzzles.pictures import Pictures, Procedural
from mmrl.data.puzzles.puzzle import Puzzle, PuzzleMaker, Verdict, chance
from mmrl.data.puzzles.source import PuzzlePrompts
from mmrl.data.puzzles.spans import read_span, show_time, span_iou
from mmrl.data.puzzles.temporal_anomaly import FRAMES, LEVELS, MARGIN, TemporalAnomaly
from mmrl.data.puzzles.temporal_jigsaw import CLIPS, TemporalJigsaw, part_frames
from mmrl.errors import UserError
from mmrl.video import open_video, read_video, spread, write_video

GOLDEN = Path(__file__).parents[1] / "golden" / "data"
SMALL: list[VideoMaker] = [TemporalJigsaw(size=48), TemporalAnomaly(size=48), CountingVideo(size=80)]
EVERY = [pytest.param(maker, level, id=f"{maker.kind}-{level}") for maker in SMALL for level in maker.levels]
USABLE = [name for name in video.READERS if video.usable(name)]
READERS = [
    pytest.param(name, marks=pytest.mark.skipif(name not in USABLE, reason=f"{name} cannot be used here"))
    for name in video.READERS
]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def made(maker: PuzzleMaker, level: int, seed: int = 0) -> Puzzle:
    return maker.make(rng(seed), level, Procedural())


def plain(maker: VideoMaker, **options: Any) -> Any:
    """The maker without files."""
    return maker.model_copy(update={"through_file": False, **options})


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2)))


def luma(frames: np.ndarray) -> np.ndarray:
    return frames @ np.array([0.299, 0.587, 0.114])


def numbered(frames: int, size: int = 64) -> np.ndarray:
    """Frame i has its number as eight black and white stripes, the highest bit at the left."""
    bits = (np.arange(frames)[:, None] >> np.arange(7, -1, -1)) & 1
    stripes = np.repeat(bits * 255, size // 8, axis=1).astype(np.uint8)
    return np.broadcast_to(stripes[:, None, :, None], (frames, size, size, 3)).copy()


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers of such frames, whatever their size."""
    size = frames.shape[2]
    middles = [int((k + 0.5) * size / 8) for k in range(8)]
    return ((frames[:, size // 2, middles, 0] > 127) @ (1 << np.arange(7, -1, -1))).tolist()


class NoiseClips:
    """Replaces `VideoMaker.clip` where only targets matter: no two frames alike, and fast."""

    def __call__(self, rng: np.random.Generator, frames: int, *args: Any, **options: Any) -> np.ndarray:
        return rng.integers(0, 256, (frames, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VideoMaker, "clip", NoiseClips())


# ---- files


@pytest.mark.parametrize("frames, fps", [(30, 7.5), (12, 4.0), (1, 2.0), (48, 29.97), (5, 60.0)])
@pytest.mark.parametrize("reader", READERS)
def test_a_video_comes_back_from_its_file(tmp_path: Path, frames: int, fps: float, reader: str) -> None:
    clip = moving_shapes(rng(), frames, 64)
    write_video(tmp_path / "a.mp4", clip, fps)
    found, rate = read_video(tmp_path / "a.mp4", reader=reader)
    assert found.shape == clip.shape and found.dtype == np.uint8
    assert rate == pytest.approx(fps, rel=1e-4)
    assert min(psnr(luma(a), luma(b)) for a, b in zip(clip, found, strict=True)) > 35 and psnr(clip, found) > 27
    write_video(tmp_path / "b.mp4", numbered(40), fps)
    assert numbers(read_video(tmp_path / "b.mp4", reader=reader)[0]) == list(range(40))


def test_all_readers_give_the_same_frames_and_writing_again_gives_the_same_file(tmp_path: Path) -> None:
    clip = moving_shapes(rng(1), 20, 64, background=Procedural().draw(rng(2), 80))
    written = set()
    for _ in range(8):
        write_video(tmp_path / "a.mp4", clip, 6)
        written.add((tmp_path / "a.mp4").read_bytes())
    assert len(written) == 1
    one, *others = (open_video(tmp_path / "a.mp4", reader) for reader in USABLE)
    for opened in (one, *others):
        assert (opened.total, opened.fps) == (20, 6)
        with pytest.raises(UserError, match=r"a\.mp4 has 20 frames; there is no frame 20"):
            opened.frames([3, 20])
    claims_more = open_video(tmp_path / "a.mp4", "av")
    claims_more.total = 25
    with pytest.raises(UserError, match=r"a\.mp4 is broken: frame 22 of 25 cannot be read"):
        claims_more.frames([3, 22])
    for indices in (range(20), [7], [3, 3, 12], [15, 2]):
        a = one.frames(list(indices)).astype(int)
        assert psnr(luma(a), luma(clip[list(indices)])) > 35
        assert all(np.abs(a - other.frames(list(indices))).max() <= 2 for other in others)


def test_frames_are_spread_from_the_first_to_the_last(tmp_path: Path) -> None:
    for total, count in [(30, 8), (10, 10), (5, 1), (2, 2), (101, 7)]:
        naive = [0] if count == 1 else [round(k * (total - 1) / (count - 1)) for k in range(count)]
        assert spread(total, count) == naive
    for total, count in [(3, 4), (3, 0), (0, 0)]:
        with pytest.raises(ValueError, match=f"cannot choose {count} of {total} frames"):
            spread(total, count)
    write_video(tmp_path / "a.mp4", numbered(40), 8)
    for fps, most, rate, expected in [
        (2, None, 2.0, spread(40, 10)),
        (2, 4, 0.8, spread(40, 4)),
        (None, 5, 1.0, spread(40, 5)),
        (100, None, 8.0, list(range(40))),
        (0.01, None, 0.2, [0]),
    ]:
        frames, found = read_video(tmp_path / "a.mp4", fps, most)
        assert numbers(frames) == expected and found == pytest.approx(rate)


def test_the_same_frames_as_qwen_vl_utils(tmp_path: Path) -> None:
    process = pytest.importorskip("qwen_vl_utils.vision_process")
    write_video(tmp_path / "a.mp4", numbered(30), 7.5)
    for count in (4, 8, 12, 30):
        _, facts = process.fetch_video({"video": str(tmp_path / "a.mp4"), "nframes": count}, return_video_metadata=True)
        assert list(facts["frames_indices"]) == spread(30, count) and facts["fps"] == 7.5


@pytest.mark.parametrize("reader", READERS)
def test_files_that_are_no_video_are_named_in_one_line(tmp_path: Path, reader: str) -> None:
    write_video(tmp_path / "whole.mp4", moving_shapes(rng(), 30, 64), 8)
    whole = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a video")
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1), sound.setsampwidth(2), sound.setframerate(8000), sound.writeframes(bytes(8000))
    for name in ("half.mp4", "empty.mp4", "text.mp4", "sound.wav"):
        with pytest.raises(UserError, match=re.escape(f"{tmp_path / name} is not a video that can be read")) as caught:
            read_video(tmp_path / name, reader=reader)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=re.escape(f"no file {tmp_path / 'absent.mp4'}")):
        read_video(tmp_path / "absent.mp4", reader=reader)
    with pytest.raises(UserError, match="expected a file"):
        read_video(tmp_path, reader=reader)


@pytest.mark.parametrize("reader", READERS)
def test_a_video_that_breaks_off_is_an_error_and_not_fewer_frames(tmp_path: Path, reader: str) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for frame in moving_shapes(rng(), 60, 64):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(whole[: 2 * len(whole) // 3])
    assert len(read_video(tmp_path / "a.mp4", reader=reader)[0]) == 60
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "b.mp4"))) as caught:
        open_video(tmp_path / "b.mp4", reader).frames(range(60))
    assert "\n" not in str(caught.value)


def test_frames_that_no_video_can_hold(tmp_path: Path) -> None:
    good = np.zeros((3, 32, 32, 3), dtype=np.uint8)
    for frames, fps, message in [
        (good[:, :31], 4, "frames are 31 x 32 pixels; a video needs an even height and width"),
        (good[:, :, :31], 4, "32 x 31"),
        (good.astype(np.float32), 4, "got float32 frames (3, 32, 32, 3); expected uint8 (T, H, W, 3)"),
        (good[0], 4, "expected uint8 (T, H, W, 3)"),
        (good[:0], 4, "expected uint8 (T, H, W, 3)"),
        (good, 0, "got 0 frames per second"),
        (good, float("nan"), "got nan frames per second"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)):
            write_video(tmp_path / "a.mp4", frames, fps)
        assert not (tmp_path / "a.mp4").exists()


@pytest.mark.parametrize("width", [16, 24, 48, 72, 80])
def test_pyav_takes_over_where_decord_fails(tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.mp4", numbered(12, 80)[:, :, :width], 4)
    opened = open_video(tmp_path / "a.mp4")
    assert (opened.total, opened.fps) == (12, 4)
    for indices in ([0, 5, 11], [3, 3]):
        by_pyav = open_video(tmp_path / "a.mp4", "av").frames(indices)
        found = opened.frames(indices)
        assert found.shape == (len(indices), 80, width, 3) and np.abs(found.astype(int) - by_pyav).max() <= 2
    with pytest.raises(UserError, match=r"a\.mp4 has 12 frames; there is no frame 12"):
        opened.frames([12])
    if not video.usable("decord") or width == 80:
        return
    with pytest.raises(UserError, match=r"a\.mp4 is broken: [^\n]*$"):
        open_video(tmp_path / "a.mp4", "decord").frames([0])
    monkeypatch.setattr(video, "_installed", lambda name: name != "av")
    monkeypatch.setattr(video, "usable", lambda name: name == "decord")
    with pytest.raises(UserError, match=r"a\.mp4 is broken: [^\n]*$"):
        open_video(tmp_path / "a.mp4").frames([0])


def test_missing_libraries_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.mp4", numbered(4), 4)
    whole = importlib.import_module

    def without(*names: str) -> None:
        def load(name: str, *args: Any) -> Any:
            if name in names:
                raise ModuleNotFoundError(name)
            return whole(name, *args)

        monkeypatch.setattr(video.importlib, "import_module", load)
        monkeypatch.setattr(video.importlib.util, "find_spec", lambda name: None if name in names else True)
        video.usable.cache_clear()

    monkeypatch.setattr(video, "usable", functools.cache(video.usable.__wrapped__))  # forgets what this test pretends
    without("torchcodec", "torchcodec.decoders", "decord")
    assert numbers(read_video(tmp_path / "a.mp4")[0]) == [0, 1, 2, 3]  # PyAV takes over
    without("torchcodec", "torchcodec.decoders", "decord", "av")
    with pytest.raises(
        UserError, match=re.escape("reading") + ".*" + re.escape("needs av, which is not installed: pip install av")
    ):
        read_video(tmp_path / "a.mp4")
    with pytest.raises(UserError, match=r"writing .* needs av"):
        write_video(tmp_path / "b.mp4", numbered(4), 4)


# ---- clips


def test_things_cross_the_frame_once_or_bounce_inside_it() -> None:
    for seed in range(20):
        once = clips._crossing(rng(seed), 50, 100, 10)
        steps = np.diff(once, axis=0)
        assert np.allclose(steps, steps[0], atol=1e-9) and np.linalg.norm(once[-1] - once[0]) == pytest.approx(80)
        bounce = clips._bouncing(rng(seed), 200, 100, 10)
        assert bounce.min() >= 10 and bounce.max() <= 90
        moved = np.abs(np.diff(bounce, axis=0)).max(axis=0)
        assert 2 <= np.hypot(*moved) <= 5.000001
        free = np.abs(np.diff(np.diff(bounce, axis=0), axis=0)).sum(axis=1) < 1e-9
        assert 0.7 < free.mean() < 1  # straight on, but for the frames at an edge


def test_a_clip_depends_on_the_seed_alone_and_no_frame_is_like_another() -> None:
    for motion in ("once", "bounce"):
        clip = moving_shapes(rng(3), 40, 64, motion=motion)
        assert np.array_equal(clip, moving_shapes(rng(3), 40, 64, motion=motion))
        assert not np.array_equal(clip, moving_shapes(rng(4), 40, 64, motion=motion))
    assert len({frame.tobytes() for frame in moving_shapes(rng(3), 40, 64, motion="once")}) == 40
    assert (moving_shapes(rng(), 3, 64, things=0) == PAPER).all()


def test_the_frame_slides_over_a_background() -> None:
    wide = np.zeros((80, 80, 3), dtype=np.uint8)
    wide[..., 0], wide[..., 1] = np.arange(80)[:, None], np.arange(80)
    for seed in range(10):
        clip = moving_shapes(rng(seed), 17, 64, things=0, background=wide)
        corner = clip[:, 0, 0, :2].astype(int)
        assert {*corner[0], *corner[-1]} <= {0, 16} and (corner[0] != corner[-1]).any()
        assert (np.abs(np.diff(corner, axis=0)) <= 1).all()
        assert all(np.array_equal(clip[k], wide[y : y + 64, x : x + 64]) for k, (y, x) in enumerate(corner))


def test_stretches_of_a_folder_of_videos(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    wide = np.pad(
        numbered(100), ((0, 0), (0, 0), (16, 16), (0, 0)), constant_values=128
    )  # grey beside the middle square
    write_video(tmp_path / "below" / "long.mp4", wide, 8)
    write_video(tmp_path / "short.mp4", numbered(10), 8)
    write_video(tmp_path / "slow.mp4", numbered(100), 2)
    (tmp_path / "notes.txt").write_text("no video")
    assert [path.name for path in video_files(tmp_path)] == ["long.mp4", "short.mp4", "slow.mp4"]
    maker = TemporalAnomaly(size=32, videos=tmp_path)
    firsts = set()
    for seed in range(30):
        clip = maker.clip(rng(seed), 40, Procedural(), 3, "bounce")
        seen = numbers(clip)
        assert clip.shape == (40, 32, 32, 3) and np.array_equal(np.diff(seen), np.full(39, 2)) and seen[-1] < 100
        assert not (np.abs(clip[:, 16].astype(int) - 128) < 20).all(axis=-1).any()
        firsts.add(seen[0])
    assert min(firsts) <= 3 and max(firsts) >= 18  # 0 to 21 are possible
    with pytest.raises(UserError, match=r"none of 3 videos .* has 60 frames at 4 per second \(15.0 s\)"):
        maker.clip(rng(), 60, Procedural(), 3, "bounce")
    for folder, message in [(tmp_path / "none", "no folder"), (tmp_path / "notes.txt", "expected a folder")]:
        with pytest.raises(ValidationError, match=message):
            TemporalAnomaly(videos=folder)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValidationError, match=r"no video in .*none"):
        TemporalAnomaly(videos=tmp_path / "none")
    (tmp_path / "none" / "bad.mp4").write_text("no video")
    with pytest.raises(UserError, match=r"bad\.mp4 is not a video"):
        made(TemporalAnomaly(videos=tmp_path / "none"), 1)


# ---- what holds for every kind and level


@pytest.mark.parametrize("maker, level", EVERY)
def test_a_right_answer_is_exact_and_the_same_seed_gives_the_same_puzzle(maker: VideoMaker, level: int) -> None:
    for seed in range(2):
        puzzle, again = made(maker, level, seed), made(maker, level, seed)
        assert maker.verify(json.loads(json.dumps(puzzle.target)), puzzle.answer) == Verdict(1.0, True)
        assert maker.verify(puzzle.target, f"  {puzzle.answer}. ").exact
        assert (again.question, again.target, again.answer, again.meta) == (
            puzzle.question, puzzle.target, puzzle.answer, puzzle.meta,
        )  # fmt: skip
        assert json.loads(json.dumps(puzzle.meta)) == puzzle.meta and puzzle.meta["rationale"].endswith(".")
        assert puzzle.question.count("<video>") in (0, len(puzzle.media)) and "<image>" not in puzzle.question
        for clip, same in zip(puzzle.media, again.media, strict=True):
            assert clip.dtype == np.uint8 and clip.shape[1:] == (maker.size, maker.size, 3) and puzzle.meta["fps"] == 4
            assert np.array_equal(clip, same)
        assert maker.verify(puzzle.target, maker.random_answer(rng(seed), puzzle.target)).parsed
    assert len({made(plain(maker), level, seed).media[0].tobytes() for seed in range(5)}) >= 4


@pytest.mark.parametrize("maker, level", EVERY)
def test_the_file_costs_a_little_and_nothing_else(maker: VideoMaker, level: int) -> None:
    filmed, drawn = made(maker, level), made(plain(maker), level)
    assert (filmed.question, filmed.target, filmed.answer) == (drawn.question, drawn.target, drawn.answer)
    for a, b in zip(filmed.media, drawn.media, strict=True):
        assert a.shape == b.shape and not np.array_equal(a, b) and psnr(luma(a), luma(b)) > 35 and psnr(a, b) > 24
        assert np.array_equal(a, through_file(b, maker.fps))


@pytest.mark.parametrize("maker, level", EVERY)
def test_guessing_is_worth_what_is_stated(maker: VideoMaker, level: int, noise: None) -> None:
    maker = plain(maker, **({"kinds": ("invert",)} if maker.kind == "temporal_anomaly" else {"size": 32}))
    found = chance(maker, level, number=250, seed=1)
    assert found.score == pytest.approx(maker.chance[level], abs=4.5 * found.error)
    assert 0 < found.error < 0.04


@pytest.mark.parametrize("maker, level", EVERY)
@pytest.mark.parametrize("answer", ["", "I do not know", "nan", "-", "1;DROP", "3,1,", "²", "\x00", "inf-nan"])
def test_what_cannot_be_read_scores_0_and_is_flagged(maker: VideoMaker, level: int, answer: str, noise: None) -> None:
    assert maker.verify(made(plain(maker, size=32), level).target, answer) == Verdict(0.0, False, False)


@pytest.mark.parametrize("maker", SMALL, ids=lambda maker: maker.kind)
def test_levels_and_options(maker: VideoMaker) -> None:
    for level in (0, max(maker.levels) + 1):
        with pytest.raises(UserError, match=f"puzzle '{maker.kind}' has no level {level} "):
            made(maker, level)
    assert type(maker).model_validate(maker.model_dump(mode="json")) == maker
    for options in ({"size": 33}, {"fps": 0}, {"background": "sky"}, {"frame": 3}):
        with pytest.raises(ValidationError):
            type(maker).model_validate(options)
    with pytest.raises(ValidationError, match="did you mean 'reverse'"):
        TemporalAnomaly(kinds=("revers",))


def test_they_are_prompts_of_a_mixture() -> None:
    mixture = [
        {"kind": f"mmrl.data.puzzles.{type(maker).kind}:{type(maker).__name__}", "level": 1, "size": 48}
        for maker in SMALL
    ]
    prompts = PuzzlePrompts.model_validate({"mixture": mixture, "number": 12}).load()
    assert {prompt.meta["kind"] for prompt in prompts} == {maker.kind for maker in SMALL}
    for prompt in prompts:
        assert all(item.ndim == 4 for item in prompt.media) and prompt.meta["fps"] == 4


# ---- temporal jigsaw


@pytest.mark.parametrize("joined", [False, True])
def test_the_order_puts_the_clips_as_they_happened(tmp_path: Path, joined: bool) -> None:
    write_video(tmp_path / "a.mp4", numbered(125), 4)
    maker = plain(TemporalJigsaw(size=32, videos=tmp_path, joined=joined))
    for level, n in [(1, 3), (2, 4), (3, 6)]:
        puzzle = made(maker, level, seed=level)
        assert len(puzzle.media) == (1 if joined else n)
        shown = np.split(puzzle.media[0], n) if joined else puzzle.media
        order = [int(number) for number in puzzle.answer.split(",")]
        times = [numbers(shown[number - 1]) for number in order]
        for now, later in itertools.pairwise(times):
            assert np.array_equal(np.diff(now), np.ones(11)) and later[0] - now[-1] - 1 >= maker.gap
        assert times[-1][-1] <= 124
        assert order != sorted(order) and puzzle.target["order"] == order


def test_parts_are_trimmed_and_leave_a_gap() -> None:
    for clip, trim, gap in itertools.product((4, 12, 33), (0.0, 0.1, 0.25, 0.49), (0, 1, 8, 9)):
        part, cut = part_frames(clip, trim, gap)
        assert part == clip + 2 * cut and cut >= trim * part and 2 * cut >= gap
        smaller = clip + 2 * (cut - 1)
        assert cut == 0 or cut - 1 < trim * smaller or 2 * (cut - 1) < gap
    assert part_frames(12, 0.1, 8) == (20, 4)


def test_any_order_but_the_one_shown_is_equally_likely() -> None:
    generator = rng()
    drawn = [tuple(orders.not_as_shown(3, generator)) for _ in range(2000)]
    counts = {order: drawn.count(order) for order in itertools.permutations((1, 2, 3))}
    assert counts[1, 2, 3] == 0
    assert all(330 < count < 470 for order, count in counts.items() if order != (1, 2, 3))


def naive_displacement(order: list[int], guess: list[int]) -> float:
    """1 - sum over clips of the distance between their places, over floor(n^2 / 2)."""
    total = 0
    for clip in order:
        total += abs(order.index(clip) - guess.index(clip))
    return 1 - total / (len(order) ** 2 // 2)


@pytest.mark.parametrize("n", [3, 4, 6])
def test_partial_credit_of_every_order(n: int) -> None:
    order = orders.not_as_shown(n, rng(n))
    target = {"order": order, "credit": "displacement"}
    scores = []
    for guess in itertools.permutations(range(1, n + 1)):
        verdict = TemporalJigsaw.verify(target, ", ".join(map(str, guess)))
        assert verdict.score == pytest.approx(naive_displacement(order, list(guess))) and verdict.parsed
        assert verdict.exact == (list(guess) == order) == (verdict.score == 1)
        scores.append(verdict.score)
    assert min(scores) == 0 and np.mean(scores) == pytest.approx(1 - (n * n - 1) / 3 / (n * n // 2))
    nearly, worse = order.copy(), order.copy()
    nearly[0], nearly[1] = nearly[1], nearly[0]
    worse[0], worse[-1] = worse[-1], worse[0]
    assert 1 > naive_displacement(order, nearly) > naive_displacement(order, worse)


@pytest.mark.parametrize(("level", "n"), [(1, 3), (2, 4)])
def test_chance_is_that_of_orders_that_may_be_right(level: int, n: int) -> None:
    may_be = [list(order) for order in itertools.permutations(range(1, n + 1))][1:]  # without the one shown
    scores = [naive_displacement(order, guess) for order in may_be for guess in may_be]
    assert TemporalJigsaw.chance[level] == pytest.approx(np.mean(scores))


def test_naming_the_clips_as_they_are_shown_is_worth_less_than_chance() -> None:
    for level, n in CLIPS.items():
        shown = ",".join(str(number) for number in range(1, n + 1))
        verdicts = [
            TemporalJigsaw.verify({"order": orders.not_as_shown(n, rng(seed)), "credit": "displacement"}, shown)
            for seed in range(600)
        ]
        mean = np.mean([verdict.score for verdict in verdicts])
        error = np.std([verdict.score for verdict in verdicts]) / 600**0.5
        assert not any(verdict.exact for verdict in verdicts) and mean < TemporalJigsaw.chance[level] + 2 * error


def test_five_or_more_gives_the_original_credit() -> None:
    golden = json.loads((GOLDEN / "visual_jigsaw__rewards.json").read_text())
    for (text, order), expected in zip(golden["inputs"]["cases"], golden["outputs"]["cases"], strict=True):
        box = re.search(r"\\boxed\{(.*)\}", text)
        if box is not None:  # without a box the original gives nothing; here an answer stands in <answer></answer>
            verdict = TemporalJigsaw.verify({"order": order, "credit": "five_or_more"}, box.group(1))
            assert verdict.score == pytest.approx(expected["acc_reward"]) and verdict.exact == bool(expected["acc"])


def test_a_video_without_motion_is_no_jigsaw(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", np.repeat(Procedural().draw(rng(), 64)[None], 130, axis=0), 4)
    with pytest.raises(UserError, match="6 clips that look alike; use videos with more motion"):
        made(TemporalJigsaw(videos=tmp_path, size=64), 3)
    with pytest.raises(UserError, match="none of 1 videos"):
        made(TemporalJigsaw(videos=tmp_path, size=64), 4)


# ---- temporal anomaly


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_the_span_is_wrong(kind: str) -> None:
    source = moving_shapes(rng(1), 60, 64, background=Procedural(style="scene").draw(rng(2), 80))
    shown = perturbed(source, kind, 20, 12, rng(3))
    assert shown.shape == (48, 64, 64, 3) and shown.dtype == np.uint8
    later = source[32 + 12 :] if kind == "fast" else source[32:48]  # twice as fast leads 12 frames further
    assert np.array_equal(shown[:20], source[:20]) and np.array_equal(shown[32:], later)
    wrong = np.abs(shown[20:32].astype(int) - source[20:32]).mean(axis=(1, 2, 3))
    assert wrong[0] > 0.5 and wrong[-1] > 0.5 and (wrong > 0.5).sum() >= 8
    assert np.array_equal(source, moving_shapes(rng(1), 60, 64, background=Procedural(style="scene").draw(rng(2), 80)))


def test_motion_kinds_show_the_frames_they_say() -> None:
    expected = {
        "freeze": [0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 4, 11, 12],
        "reverse": [0, 1, 2, 3, 4, 10, 9, 8, 7, 6, 5, 11, 12],
        "fast": [0, 1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 17, 18],
        "stutter": [0, 1, 2, 3, 4, 7, 4, 9, 6, 11, 8, 11, 12],
    }
    for kind, frames in expected.items():
        assert MOTION_KINDS[kind][0](5, 6, 13, rng()).tolist() == frames
    for seed in range(50):
        shuffled = MOTION_KINDS["shuffle"][0](5, 6, 13, rng(seed)).tolist()
        assert sorted(shuffled) == list(range(13)) and shuffled[:5] == [0, 1, 2, 3, 4] and shuffled[11:] == [11, 12]
        assert shuffled[5] != 5 and shuffled[10] != 10


def test_picture_kinds_do_what_they_say() -> None:
    frames = rng().integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    do = {name: kind(frames, rng(1)).astype(int) for name, (kind, _) in PICTURE_KINDS.items()}
    assert np.array_equal(do["invert"] + frames, np.full_like(frames, 255))
    assert np.array_equal(do["upside_down"][:, 0], frames[:, -1]) and np.array_equal(
        do["mirror"][:, :, 0], frames[:, :, -1]
    )
    assert (
        np.array_equal(np.sort(do["swap"], axis=-1), np.sort(frames, axis=-1)) and (do["swap"] != frames).mean() > 0.9
    )
    assert np.ptp(do["grey"], axis=-1).max() == 0 and abs(do["grey"].mean() - frames.mean()) < 5
    assert do["dark"].max() <= 77 and do["bright"].min() >= 153
    assert (
        do["blur"].std() < 0.5 * frames.std() and 35 < (do["noise"] - frames)[(frames > 90) & (frames < 165)].std() < 50
    )
    assert np.array_equal(do["blocks"][:, 0:4, 0:4], np.repeat(np.repeat(do["blocks"][:, :1, :1], 4, 1), 4, 2))
    assert (do["cover"] == 128).all(axis=-1).sum() >= 800 and np.array_equal(
        do["quarters"][:, 20:, 20:], frames[:, :20, :20]
    )
    assert np.array_equal(do["turn"], np.rot90(frames, 1, (1, 2))) or np.array_equal(
        do["turn"], np.rot90(frames, 3, (1, 2))
    )
    flat = np.repeat(np.repeat(frames[:, ::8, ::8], 8, 1), 8, 2)
    assert np.abs(PICTURE_KINDS["zoom"][0](flat, rng()).astype(int)[:, 4, 4] - flat[:, 12, 12]).max() < 60
    for name, (kind, _) in PICTURE_KINDS.items():  # a frame is changed without a look at the others
        assert name == "noise" or np.array_equal(kind(frames[1:], rng(1)), do[name][1:])
    assert len(KINDS) == 19 and {name for level in LEVELS.values() for name in level.kinds} == set(KINDS)


@pytest.mark.parametrize("level", LEVELS)
def test_the_answer_says_when_the_video_is_wrong(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sources: list[np.ndarray] = []
    drawn = VideoMaker.clip

    def remembered(self: VideoMaker, *args: Any, **options: Any) -> np.ndarray:
        sources.append(drawn(self, *args, **options))
        return sources[-1]

    monkeypatch.setattr(VideoMaker, "clip", remembered)
    for seed, fps in itertools.product(range(6), (4.0, 10.0)):
        puzzle = made(TemporalAnomaly(size=48, through_file=False, fps=fps), level, seed)
        wrong = np.flatnonzero((puzzle.media[0] != sources[-1][:FRAMES]).any(axis=(1, 2, 3)))
        start, end = puzzle.target["span"]
        assert wrong[0] / fps == pytest.approx(start)
        if puzzle.meta["anomaly"] != "fast":  # after which nothing is where it was
            assert (wrong[-1] + 1) / fps == pytest.approx(end)
        assert LEVELS[level].least <= round((end - start) * fps) <= LEVELS[level].most
        assert MARGIN / fps <= start and end <= (FRAMES - MARGIN) / fps
        assert puzzle.answer == f"{show_time(start)}-{show_time(end)}" and puzzle.meta["anomaly"] in LEVELS[level].kinds
        least, most = (show_time(frames / fps) for frames in (LEVELS[level].least, LEVELS[level].most))
        assert (
            f"{show_time(FRAMES / fps)} seconds long" in puzzle.question
            and f"of {least} to {most} seconds" in puzzle.question
        )


def test_a_still_or_plain_video_shows_no_anomaly(monkeypatch: pytest.MonkeyPatch) -> None:
    still = np.broadcast_to(np.uint8(128), (80, 48, 48, 3))
    monkeypatch.setattr(VideoMaker, "clip", lambda self, rng, frames, *args, **options: still[:frames])
    for kind in ("freeze", "blur", "mirror"):
        with pytest.raises(UserError, match=f"too plain to show '{kind}'; use videos with more motion, or set kinds"):
            made(TemporalAnomaly(size=48, kinds=(kind,)), 1)


@pytest.mark.parametrize(
    "text, span",
    [
        ("2.0-3.5", (2, 3.5)), ("2 - 3.5", (2, 3.5)), ("2.0–3.5 s", (2, 3.5)), ("2.0 — 3.5 seconds", (2, 3.5)),
        ("from 3 to 7", (3, 7)), ("between 4 and 9 seconds", (4, 9)), ("[2, 3.5]", (2, 3.5)), ("(2s to 3.5s)", (2, 3.5)),
        ("0:10 - 0:25", (10, 25)), ("1:02:03 - 1:02:09.5", (3723, 3729.5)), ("30 - 20", (30, 20)), ("2.0-3.5.", (2, 3.5)),
        ("2.0", None), ("-1-3", None), ("2.0-", None), ("2.0-3.5-4", None), ("2-3 and 5-6", None), ("1e3-2e3", None),
        ("it is 2.0-3.5", None), ("2.0-3.5 or so", None), ("1:2:3:4-5", None), (".5-1", None), ("nan-inf", None),
    ],
)  # fmt: skip
def test_spans_are_read(text: str, span: tuple[float, float] | None) -> None:
    assert read_span(text) == span


def test_spans_as_the_benchmark_reads_them() -> None:
    """Cases of lmms-eval's Charades-STA. Its reader searches sentences and turns a reversed pair round; an answer here is a
    span and nothing else, keeps its order, and may say "between ... and ..." ."""
    cases = json.loads((GOLDEN / "grounding__eval.json").read_text())["cases"]
    ours = {"30 - 20": (30.0, 20.0), "between 4 and 9 seconds": (4.0, 9.0)}
    sentences = ("The event happens", "The event starts", "A specific example", "starts at")
    read = [(case["inputs"][0], case["outputs"]) for case in cases if case["fn"] == "charades.extract_time"]
    assert len(read) == 10
    for text, spans in read:
        if text.startswith(sentences):
            assert read_span(text) is None
        else:
            assert read_span(text) == ours.get(text, tuple(spans[0]) if spans else None)
    overlaps = [case for case in cases if case["fn"] == "charades.iou"]
    assert len(overlaps) == 4
    for case in overlaps:
        assert span_iou(*map(tuple, case["inputs"])) == pytest.approx(case["outputs"], abs=1e-12)


def naive_iou(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Counted over hundredths of a second."""
    inside = [[s <= t / 100 + 0.005 < e for t in range(1000)] for s, e in (a, b)]
    both = sum(x and y for x, y in zip(*inside, strict=True))
    either = sum(x or y for x, y in zip(*inside, strict=True))
    return both / either if either else 0.0


def test_overlap_is_counted_right() -> None:
    generator = rng()
    for _ in range(150):
        a, b = (tuple(sorted(np.round(generator.uniform(0, 10, 2), 2))) for _ in range(2))
        assert span_iou(a, b) == pytest.approx(naive_iou(a, b), abs=1e-9)
        assert span_iou(a, b) == span_iou(b, a) and (a[0] == a[1] or span_iou(a, a) == 1)
    assert span_iou((3, 1), (1, 3)) == span_iou((1, 3), (3, 1)) == span_iou((2, 2), (2, 2)) == 0


def test_a_nearer_span_is_worth_more_and_a_reversed_one_nothing() -> None:
    target = {"span": [2.0, 5.0], "reversed": "zero"}
    grown = [TemporalAnomaly.verify(target, f"{2 - k / 4}-5").score for k in range(8)]
    moved = [TemporalAnomaly.verify(target, f"{2 + k / 4}-{5 + k / 4}").score for k in range(12)]
    for scores in (grown, moved):
        assert scores[0] == 1 and all(a > b for a, b in itertools.pairwise(scores))
    assert TemporalAnomaly.verify(target, "6-9") == Verdict(0.0, False)
    assert TemporalAnomaly.verify(target, "0-1000").score == pytest.approx(0.003)
    assert TemporalAnomaly.verify(target, "2-2") == TemporalAnomaly.verify(target, "5-2") == Verdict(0.0, False)
    swap = {**target, "reversed": "swap"}
    assert TemporalAnomaly.verify(swap, "5-2") == TemporalAnomaly.verify(swap, "2-5") == Verdict(1.0, True)
    assert made(TemporalAnomaly(size=32, reversed="swap"), 1).target["reversed"] == "swap"


# ---- counting


def shape_of(mask: np.ndarray) -> str:
    """What fills a bounding box, told by how much of it is filled and how wide its last rows are."""
    if mask.mean() > 0.95:
        return "square"
    if mask.mean() > 0.7:
        return "circle"
    return "triangle" if mask[-2].mean() > 0.7 else "cross"


@pytest.mark.parametrize("level", CountingVideo.levels)
def test_counted_things_are_in_the_video(level: int) -> None:
    for seed in range(12):
        puzzle = made(CountingVideo(size=160, through_file=False), level, seed)
        frames = puzzle.media[0]
        seen: list[str] = []
        lit = [(frame != PAPER).any(axis=-1) for frame in frames]
        for before, now in itertools.pairwise(range(len(frames))):
            if np.array_equal(lit[before], lit[now]) or not lit[now].any():
                continue
            assert not lit[before].any()  # a moment begins only when the last is over
            boxes, _ = ndimage.label(lit[now], np.ones((3, 3)))
            seen += [shape_of(boxes[box] > 0) for box in ndimage.find_objects(boxes)]
        asked = re.findall(r"circle|square|triangle|cross", puzzle.question)
        assert [seen.count(shape) for shape in asked] == puzzle.target["counts"]
        assert len(seen) == sum(puzzle.meta["moments"])


def test_every_moment_is_seen_at_two_frames_per_second() -> None:
    for seed in range(20):
        puzzle = made(CountingVideo(size=80, through_file=False), 3, seed)
        frames = puzzle.media[0]
        every = {frame.tobytes() for frame in frames}
        looked_at = {frames[number].tobytes() for number in spread(len(frames), len(frames) // 2)}
        assert looked_at == every
        assert (frames[:4] == PAPER).all() and (frames[-4:] == PAPER).all()


def test_pictures_may_lie_behind_the_things() -> None:
    class White(Pictures):
        def draw(self, rng: np.random.Generator, size: int) -> np.ndarray:
            return np.full((size, size, 3), 200, dtype=np.uint8)

    for maker in SMALL:
        clip = plain(maker, background="pictures").make(rng(1), 2, White()).media[0]
        assert (clip[0] == 200).all(axis=-1).mean() > 0.6


def naive_credit(guess: list[int], true: list[int]) -> float:
    total = 0.0
    for p, g in zip(guess, true, strict=True):
        share = 1 - abs(p - g) / (g if g > 0 else 1)
        total += share if share > 0 else 0.0
    return total / len(true)


def test_credit_for_wrong_counts() -> None:
    for true in itertools.product(range(4), repeat=2):
        for guess in itertools.product(range(6), repeat=2):
            verdict = CountingVideo.verify({"counts": list(true), "most": 3}, f"{guess[0]}, {guess[1]}")
            assert (
                verdict.score == mean_credit(list(guess), list(true)) == pytest.approx(naive_credit([*guess], [*true]))
            )
            assert verdict.exact == (guess == true) == (verdict.score == 1)
    near = [CountingVideo.verify({"counts": [6, 2]}, f"{p},2").score for p in (6, 5, 4, 3, 2, 1, 0)]
    assert all(a > b for a, b in itertools.pairwise(near))
    assert CountingVideo.verify({"counts": [0]}, "0") == Verdict(1.0, True)
    assert CountingVideo.verify({"counts": [0]}, "1") == Verdict(0.0, False)  # as g + 1e-9 below the line gives it, too


def test_lists_must_be_as_long_as_asked() -> None:
    target = {"counts": [3, 1], "most": 4}
    for answer in ("3", "3,1,1", "three", "-3,1", "3.5,1", "about 3,1"):
        assert CountingVideo.verify(target, answer) == Verdict(0.0, False, False)
    for answer in ("3,1", "[3, 1]", "3 1", "3; 1"):
        assert CountingVideo.verify(target, answer).exact
    assert CountingVideo.verify({"counts": [3]}, "Three.").exact and CountingVideo.verify({"counts": [3]}, "[3]").exact
