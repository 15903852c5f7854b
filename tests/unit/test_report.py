"""The report: the right numbers, from whatever a run left behind, in one safe and self-contained file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmrl.evaluate import Picture
from mmrl.folder import RunFolder
from mmrl.report.breakdown import breakdowns
from mmrl.report.change import Change, changes
from mmrl.report.data import read_run
from mmrl.report.grid import cut_grid, save_grid, verdict
from mmrl.report.html import write_report
from mmrl.report.measures import Measure, deciding, measure
from mmrl.report.panels import Curve, Panel, constants, panels
from mmrl.report.plot import draw, draw_bars
from mmrl.report.shots import save_pictures
from mmrl.tiles import Tile

HOSTILE = '<script>alert("x")</script> & a "red" circle'
CONFIG = {
    "run": {"name": "shapes", "seed": 7},
    "policy": {"name": "tiny_sd3"},
    "stages": {
        "warm": {"kind": "supervised", "steps": 60, "batch_size": 64},
        "rl": {
            "kind": "rl", "steps": 120, "prompts_per_step": 8, "group_size": 12,
            "rewards": {"dense": {"name": "shapes", "weight": 0.5}, "exact": {"name": "shapes", "weight": 0.5}},
            "objective": {"advantage": {"name": "group"}, "surrogate": {"name": "clip"}},
        },
    },
    "evaluation": {"rewards": {"strict": {"name": "shapes"}, "clean": {"name": "shapes"}}},
}  # fmt: skip


def pictures(right: int, rng: np.random.Generator, side: int = 24) -> list[Picture]:
    """Twelve pictures of a coloured square; the first `right` ones are right."""
    found = []
    for index in range(12):
        image = np.full((side, side, 3), 245, dtype=np.uint8)
        x, y = rng.integers(2, side // 2, 2)
        image[y : y + side // 3, x : x + side // 3] = (40 * index % 256, 90, 200 - 15 * index)
        prompt = HOSTILE if index == 0 else f"a square of colour {index} to the left of two small green circles"
        value = float(index < right)
        rewards: dict[str, float | None] = {"dense": 0.5, "exact": value, "strict": value, "clean": -0.4}
        found.append(Picture(prompt, image, None, rewards))
    return found


def lines(steps: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Metrics as a run writes them: a warm stage, then rl with evaluations before, every 30 steps and after."""

    def clock(**phases: float) -> dict[str, float]:
        total = sum(phases.values()) + 0.02
        named = {f"seconds/{name}": value for name, value in phases.items()}
        return {**named, "seconds": total, "samples_per_second": 96 / total, "memory_mb": 900 + 5 * rng.random()}

    def held_out(step: int) -> dict[str, float]:
        share = step / 120
        return {"eval/dense": 0.4 + 0.3 * share, "eval/exact": 0.3 + 0.25 * share, "eval/strict": 0.21 + 0.12 * share,
                "eval/clean": -0.8 + 0.3 * share}  # fmt: skip

    for step in range(1, 61):
        loss = 30 * math.exp(-step / 8) + 0.4 + 0.1 * rng.random()
        yield {"stage": "warm", "step": step, "total": step, "grad_norm": 3 * loss, "lr": 2e-3, "loss": loss,
               "time": clock(data=0.03, update=0.4)}  # fmt: skip
    yield {"stage": "rl", "step": 0, "total": 60, **held_out(0), "time": {"seconds/evaluate": 2.0}}
    for step in range(1, steps + 1):
        level = 0.3 + 0.3 * step / 120
        dense, exact = level + 0.05 * rng.standard_normal(), level - 0.1 + 0.08 * rng.standard_normal()
        line = {
            "stage": "rl", "step": step, "total": 60 + step, "grad_norm": 0.4 + rng.random(), "lr": 3e-4,
            "reward/dense": dense, "reward/exact": exact, "reward": (dense + exact) / 2, "reward_std": 0.3,
            "reward/exact/failed": float(step % 40 == 0), "failed": float(step % 40 == 0), "skipped": 0.0,
            "group_std": 0.2 + 0.02 * rng.random(), "zero_signal_share": 0.25 * rng.random(), "singleton_groups": 0.0,
            "loss": 1e-3 * rng.standard_normal(), "ratio": 1 + 1e-5 * rng.standard_normal(),
            "ratio_deviation": 1e-3 * rng.random() + 1e-4, "approx_kl": 1e-5 * rng.random(), "clip_low": 0.1 * rng.random(),
            "clip_high": 0.1 * rng.random(), "clip_dual": 0.0, "kl": 1e-3 * step / 120, "advantage/abs_mean": 0.7 + 0.1 * rng.random(),
            "rollout/nfe": 8.0, "time": clock(rollout=0.6 + 0.05 * rng.random(), reward=0.05, update=0.9 + 0.1 * rng.random()),
        }  # fmt: skip
        if 50 <= step < 60:
            del line["reward"]
        yield {**line, **held_out(step)} if step % 30 == 0 and step < 120 else line
    if steps == 120:
        yield {"stage": "rl", "step": 120, "total": 180, **held_out(120), "time": {"seconds/evaluate": 2.0}}


def fake_run(path: Path, steps: int = 120) -> RunFolder:
    """A run's folder with everything in it; unfinished for less than 120 steps."""
    rng = np.random.default_rng(0)
    folder = RunFolder(path)
    folder.create(CONFIG, {"started": "2030-01-02T03:04:05+00:00", "python": "3.11", "packages": {"torch": "2.15"}})
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines(steps, rng)))
    for step in range(0, steps + 1, 30):
        when = "before" if step == 0 else "after" if step == 120 else "during"
        save_pictures(pictures(2 + step // 20, rng), folder.samples, f"{60 + step:06d}_rl_{when}")
    if steps == 120:
        rl = {"kind": "rl", "steps": 120, "seconds": 205.0, "training_seconds": 190.0, "samples": 11520,
              "samples_per_second": 60.6, "after": {"strict": 0.33, "samples": 240}}  # fmt: skip
        summary = {
            "stages": {"rl": rl},
            "failed_rewards": 3,
            "skipped_rewards": 0,
            "skipped_updates": 1,
            "processes": 1,
        }
        folder.summary.write_text(json.dumps(summary))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return fake_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(finished: RunFolder) -> str:
    return write_report(finished).read_text(encoding="utf-8")


def test_says_what_changed_in_points(page: str) -> None:
    """Rewards in [0, 1] in points with their levels, others as plain numbers, held-out ones first and marked."""
    assert "+12.0 points" in page and "21.0 % → 33.0 %" in page
    assert "+25.0 points" in page
    assert "+0.3<" in page and "−0.8 → −0.5" in page
    assert page.index("+12.0 points") < page.index("+30.0 points")
    assert page.count("never trained on</span>") >= 2


def test_held_out_are_the_rewards_no_stage_trains_on(finished: RunFolder) -> None:
    found = {change.name: change.held_out for stage in changes(read_run(finished)) for change in stage.changes}
    assert found == {"strict": True, "clean": True, "dense": False, "exact": False}


def test_no_difference_has_no_direction() -> None:
    assert Change("x", True, True, 0.5, 0.5002).shown_difference == "±0.0 points"
    assert Change("x", True, True, 0.5, 0.5002).direction == "level"
    assert Change("x", True, True, 0.5, 0.4).shown_difference == "−10.0 points"
    assert Change("x", True, False, math.nan, 0.4).shown_difference == "–"


def test_is_one_self_contained_file(page: str) -> None:
    """No address outside the file, no script, every image inside."""
    assert "://" not in page
    assert not re.search(r"<script|<link|@import|<iframe|<object", page)
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources and all(source.startswith(("data:image/", "#")) for source in sources)


def test_prompts_are_text_and_never_markup(page: str) -> None:
    assert "<script" not in page and "&lt;script&gt;alert(" in page


def test_pictures_are_paired_and_counted(page: str) -> None:
    assert "2 of 12 → 8 of 12" in page and "Right by <b>strict</b>" in page
    assert "Over time" in page and "step 30" in page


def test_counts_failures_and_seconds(page: str) -> None:
    for text in (
        "samples with a failed reward",
        "optimizer steps skipped",
        "reward exact failed in training",
        "3 min 25 s",
    ):
        assert text in page, text


def test_shows_facts_and_config(page: str) -> None:
    for text in ("torch 2.15", "prompts_per_step: 8", "seed 7", ">finished<", "240 samples each"):
        assert text in page, text


def test_unfinished_run_says_so_and_compares_with_its_last_evaluation(tmp_path: Path) -> None:
    page = write_report(fake_run(tmp_path, steps=75)).read_text()
    assert "not finished: step 75 of 120 of stage rl" in page
    assert "at its step 60" in page and "+6.0 points" in page


def test_metrics_alone_are_enough(tmp_path: Path) -> None:
    """A crashed run: only metrics.jsonl, its last line cut off."""
    folder = RunFolder(tmp_path)
    text = "".join(json.dumps(line) + "\n" for line in lines(20, np.random.default_rng(0)))
    folder.metrics.write_text(text + '{"stage": "rl", "ste')
    page = write_report(folder).read_text()
    assert "not finished: step 20 of stage rl" in page and "Reward in training" in page
    assert "config.yaml is missing" in page and "1 unreadable line left out" in page


def test_empty_folder_and_broken_files_are_notes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert "no step was logged" in write_report(folder).read_text()
    folder.samples.mkdir()
    folder.config.write_text("stages: [unclosed")
    folder.summary.write_text('{"stages": ')
    (folder.samples / "000000_rl_before.json").write_text('[{"prompt": "x", "rewards": {"exact": null}}]')
    (folder.samples / "000000_rl_before.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    page = write_report(folder).read_text()
    for text in ("config.yaml cannot be read", "summary.json is not complete JSON", "samples/000000_rl_before.png"):
        assert text in page, text


def test_a_missing_value_is_a_gap_and_no_number(finished: RunFolder) -> None:
    stage = read_run(finished).stages[1]
    reward = panels(stage, [])[0].curves[0]
    assert reward.label == "total" and all(math.isnan(reward.y[step - 1]) for step in range(50, 60))
    assert sum(math.isnan(y) for y in reward.y) == 10


def test_panels_without_data_are_left_out(finished: RunFolder) -> None:
    warm, rl = (panels(stage, ["strict"]) for stage in read_run(finished).stages)
    assert [panel.title for panel in warm] == [
        "Loss", "Gradient norm", "Learning rate", "Seconds per step", "Samples per second", "Peak memory, MB"
    ]  # fmt: skip
    titles = {panel.title for panel in rl}
    assert {"Held-out prompts", "Clipped steps", "KL", "Groups without signal", "advantage/abs_mean"} <= titles
    assert ("rollout/nfe", 8.0) in constants(read_run(finished).stages[1])


def test_time_phases_and_rest_add_up(finished: RunFolder) -> None:
    stage = read_run(finished).stages[1]
    stack = next(panel for panel in panels(stage, []) if panel.style == "stack")
    assert [curve.label for curve in stack.curves] == ["rollout", "reward", "update", "rest"]
    assert sum(curve.y[0] for curve in stack.curves) == pytest.approx(stage.steps[0]["time"]["seconds"])


@pytest.mark.parametrize("style", ["line", "points", "stack", "raw"])
@pytest.mark.parametrize("count", [1, 3, 30, 3000])
def test_draws_any_length_with_gaps(style: Any, count: int) -> None:
    y = [0.5 + 0.1 * math.sin(i / 9) for i in range(count)]
    y[count // 2] = math.nan if count > 1 else y[0]
    svg = draw(Panel("x", [Curve("$a_b < <script>", [float(i) for i in range(count)], y)], style=style))
    assert svg.startswith("<svg viewBox=") and "var(--s0)" in svg and "<script" not in svg
    assert len(svg) < 120_000


def test_grid_of_twelve_small_images(tmp_path: Path) -> None:
    """Enlarged by whole pixels, marked by colour, and cut out again exactly."""
    shown = pictures(5, np.random.default_rng(1))
    save_grid(shown, tmp_path / "grid.png")
    sheet = Image.open(tmp_path / "grid.png").convert("RGB")
    assert sheet.width > 6 * 96 and sheet.height > 2 * 96
    colours = {colour for _, colour in sheet.getcolors(1 << 20)}
    assert (0x1A, 0x7F, 0x37) in colours and (0xC6, 0x2F, 0x2F) in colours
    images = cut_grid(tmp_path / "grid.png")
    assert images is not None and len(images) == 12
    for image, picture in zip(images, shown, strict=True):
        assert image is not None and np.array_equal(np.asarray(image), picture.image)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_grid_of_large_images_texts_and_nothing(tmp_path: Path) -> None:
    large = Picture("a lighthouse " * 40, np.zeros((300, 900, 3), dtype=np.uint8), None, {"clip": 0.31})
    text = Picture("x" * 300, None, "the answer is 42\n" * 40, {"exact": None})
    save_grid([large, text], tmp_path / "grid.png")
    images = cut_grid(tmp_path / "grid.png")
    assert images is not None and images[0] is not None and images[0].size == (256, 85) and images[1] is None
    save_grid([], tmp_path / "empty.png")
    assert cut_grid(tmp_path / "empty.png") == []


def test_another_png_is_shown_as_it_is(tmp_path: Path) -> None:
    folder = fake_run(tmp_path, steps=30)
    for path in folder.samples.glob("*.png"):
        Image.new("RGB", (200, 100)).save(path)
    assert cut_grid(next(folder.samples.glob("*.png"))) is None
    assert "data:image/jpeg" in write_report(folder).read_text()


def test_text_samples_are_shown_as_text(tmp_path: Path) -> None:
    folder = fake_run(tmp_path, steps=30)
    for path in folder.samples.glob("*.json"):
        save_pictures([Picture("how many?", None, "<b>seven</b>", {"exact": 1.0})], folder.samples, path.stem)
    page = write_report(folder).read_text()
    assert "<pre>&lt;b&gt;seven&lt;/b&gt;</pre>" in page


@pytest.mark.parametrize(
    ("rewards", "state", "label"),
    [
        ({"dense": 0.2, "exact": 1.0}, "right", "exact"),
        ({"exact": 1.0, "strict": 0.0}, "wrong", "strict"),
        ({"exact": 0.5}, "partly", "exact 0.50"),
        ({"exact": None}, "open", "exact not scored"),
        ({"exact": 7.0, "clip": 0.31234}, "open", "exact 7, clip 0.312"),
        ({}, "open", ""),
    ],
)
def test_verdict(rewards: dict[str, float | None], state: str, label: str) -> None:
    found = verdict(rewards)
    assert (found.state, found.label) == (state, label)


# ---- models that look


def looking_run(path: Path) -> RunFolder:
    """A run of a model that answers questions about pictures and videos: numbers before and after, two questions."""
    folder = RunFolder(path)
    rewards = {"right": {"name": "puzzle"}, "format": {"name": "puzzle"}}
    folder.create({"policy": {"name": "vlm"}, "stages": {"rl": {"kind": "rl", "steps": 2, "rewards": rewards}}}, {})

    def held_out(gain: float) -> dict[str, float]:
        found = {"eval/right": 0.25 + gain, "eval/right/blind": 0.22, "eval/right/chance": 0.245, "eval/format": 0.9,
                 "eval/format/blind": 0.8}  # fmt: skip
        for part, level in (("kind=maze", 0.1), ("kind=<b>jigsaw", 0.4), ("level=1", 0.25), ("kind=maze,level=1", 0.1)):
            found |= {f"eval/right/{part}": level + gain, f"eval/right/{part}/blind": 0.05,
                      f"eval/right/{part}/chance": 0.07}  # fmt: skip
        return found

    steps = [{"stage": "rl", "step": n, "total": n, "reward": 0.4, "entropy": 1.5, "rollout/tokens": 30.0 + n,
              "rollout/finished": 1.0, "zero_signal_share": 0.5, "clip_high": 0.01, "time": {}} for n in (1, 2)]  # fmt: skip
    ends = [{"stage": "rl", "step": n, "total": n, **held_out(gain), "time": {}} for n, gain in ((0, 0.0), (2, 0.2))]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in (ends[0], *steps, ends[1])))
    rng = np.random.default_rng(0)
    square, *frames = (
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for side in (24, *[40] * 5)
    )
    video = [Tile(frame, f"{number}.00 s") for number, frame in enumerate(frames)]
    for total, when, answers in ((0, "before", ("3", "yes")), (2, "after", ("4", "long " * 500 + "no"))):
        shown = [
            Picture("How many?", None, answers[0], {"right": float(answers[0] == "4")}, [[Tile(square)]], "4", "count · level 1"),
            Picture("Is <video> as <image>?", None, answers[1], {"right": 0.0}, [video, [Tile(square)]], "<i>no"),
        ]  # fmt: skip
        save_pictures(shown, folder.samples, f"{total:06d}_rl_{when}")
    return folder


def test_questions_stand_with_their_pictures_and_both_answers(tmp_path: Path) -> None:
    """Every picture and frame, the right answer, and a mark for each answer; a long one without its middle."""
    folder = looking_run(tmp_path)
    assert len(list((folder.samples / "media").glob("*.png"))) == 6, "equal pictures are stored once"
    page = write_report(folder).read_text()
    samples = page[page.index("<h2>Samples</h2>") : page.index("<h2>Curves")]
    assert samples.count('alt="what the prompt shows"') == 7 and "<figcaption>4.00 s</figcaption>" in samples
    assert "right answer:</span> <b>4</b>" in samples and "&lt;i&gt;no" in samples and "count · level 1" in samples
    first = samples[: samples.index("Is &lt;video&gt;")]
    assert first.index("<pre>3</pre>") < first.index("<pre>4</pre>")
    assert first.count('<div class="frame wrong"') == first.count('<div class="frame right"') == 1
    assert "Right: 0 of 2 → 1 of 2." in samples
    assert "[… 1,602 characters …]" in samples and samples.count("long " * 500 + "no</pre>") == 1


def test_right_answers_by_kind_and_level_with_chance_and_blind(tmp_path: Path) -> None:
    folder = looking_run(tmp_path)
    found = {chart.title: chart for chart in breakdowns(read_run(folder))}
    assert list(found) == ["by kind", "by level", "by kind and level"]
    assert [row.label for row in found["by kind"].rows] == ["all prompts", "maze", "<b>jigsaw"]
    assert found["by kind and level"].rows[0].label == "maze, level 1"
    whole, maze = found["by kind"].rows[:2]
    assert (whole.before, whole.after, whole.blind, whole.chance) == (0.25, 0.45, 0.22, 0.245)
    assert maze.after == pytest.approx(0.3) and maze.chance == 0.07
    svg = draw_bars(found["by kind"])
    for text in ("25.0%", "45.0%", "22.0%", "30.0%", "maze", "&lt;b&gt;jigsaw"):
        assert text in svg, text
    page = write_report(folder).read_text()
    assert "after, blind" in page and "blind 22.0 % → 22.0 %, chance 24.5 %" in page and "+20.0 points" in page


def test_blind_stands_beside_what_looking_earns_on_the_same_prompts(tmp_path: Path) -> None:
    """Where some prompts have no media, all of them say nothing about what looking is worth."""
    folder = looking_run(tmp_path)
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    for line, gain in ((lines[0], 0.0), (lines[-1], 0.2)):
        line |= {"eval/right/media": 0.3 + gain, "eval/right/kind=maze/media": 0.11 + gain}
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = read_run(folder)
    rows = {row.label: row for row in breakdowns(data)[0].rows}
    assert list(rows) == ["all prompts", "all prompts, with media", "maze", "maze, with media", "<b>jigsaw"]
    assert math.isnan(rows["all prompts"].blind) and rows["all prompts"].chance == 0.245
    seen = rows["all prompts, with media"]
    assert (seen.before, seen.after, seen.blind) == (0.3, 0.5, 0.22) and math.isnan(seen.chance)
    assert (rows["maze, with media"].before, rows["maze, with media"].blind) == (0.11, 0.05)
    assert rows["<b>jigsaw"].blind == 0.05
    right = next(change for change in changes(data)[0].changes if change.name == "right")
    assert right.beside == "with media 30.0 % → 50.0 %, blind 22.0 % → 22.0 %, chance 24.5 %"
    held = next(panel for panel in panels(data.stages[0], []) if panel.title == "Held-out prompts")
    assert ("right, with media", True) in [(curve.label, curve.guide) for curve in held.curves]


def test_parts_of_a_reward_are_no_rewards_of_their_own(tmp_path: Path) -> None:
    data = read_run(looking_run(tmp_path))
    assert [change.name for stage in changes(data) for change in stage.changes] == ["right", "format"]
    held = next(panel for panel in panels(data.stages[0], []) if panel.title == "Held-out prompts")
    assert [(curve.label, curve.guide) for curve in held.curves] == [
        ("right", False), ("format", False), ("right, blind", True), ("right, chance", True)
    ]  # fmt: skip
    assert {"Entropy", "Answer length", "Groups without signal", "Clipped steps"} <= {
        panel.title for panel in panels(data.stages[0], [])
    }


def test_a_generative_run_has_no_chart_of_right_answers(finished: RunFolder, page: str) -> None:
    assert breakdowns(read_run(finished)) == [] and "Right answers" not in page


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("eval/right", Measure("right")),
        ("eval/right/blind", Measure("right", "", "blind")),
        ("eval/right/kind=maze,level=1/chance", Measure("right", "kind=maze,level=1", "chance")),
        ("eval/measured/rac", Measure("measured/rac")),
        ("eval/right/blind/failed", None),
        ("reward/right", None),
    ],
)
def test_names_of_held_out_numbers(key: str, found: Measure | None) -> None:
    assert measure(key) == found
    assert found is None or found.key == key


def test_the_reward_that_decides() -> None:
    assert deciding(["format", "right", "exact"], []) == "exact"
    assert deciding(["format", "mine"], ["mine"]) == "mine" and deciding(["format"], []) == "format"
    assert deciding([], []) is None


def test_lost_pictures_of_a_prompt_are_a_note_and_no_other_file_is_opened(tmp_path: Path) -> None:
    folder = looking_run(tmp_path)
    next((folder.samples / "media").glob("*.png")).unlink()
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    for path in folder.samples.glob("*.json"):
        entries = json.loads(path.read_text())
        entries[0]["media"] = [[{"file": "../secret.png", "label": ""}], "nonsense"]
        path.write_text(json.dumps(entries))
    data = read_run(folder)
    assert len([note for note in data.notes if "media/" in note]) == 1 and data.sheets[0].shots[0].media == []
    assert "samples/../secret.png is missing or incomplete" in data.notes


def test_a_sheet_shows_the_media_above_the_answer(tmp_path: Path) -> None:
    """Frames with their times, enlarged by whole pixels, above the answer."""
    frames = [Tile(Image.new("RGB", (20, 20), (10 * number, 90, 10)), f"{number}.00 s") for number in range(4)]
    save_grid([Picture("When?", None, "a\n" * 40, {"exact": 0.0}, [frames], "1")], tmp_path / "grid.png")
    sheet = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
    places = [(14, 14), (14, 118), (134, 14), (134, 118)]  # five times as large, two rows of two, a line of text each
    assert all((sheet[y, x] == (10 * number, 90, 10)).all() and (sheet[y + 99, x + 99] == sheet[y, x]).all()
               for number, (y, x) in enumerate(places))  # fmt: skip
    assert cut_grid(tmp_path / "grid.png") == [None]
