"""Kept samples under other rewards: the run's own give what is stored to the last bit, others what a training would have given."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from test_kept import filled, trained
from toy_policy import FakeGroup, Ones, Prompts, ToyPolicy, gradients, stage
from typer.testing import CliRunner

from mmrl.advantage.branch import BranchAdvantage
from mmrl.advantage.care import GrpoCare
from mmrl.advantage.dcpo import DcpoAdvantage
from mmrl.advantage.group import DrAdvantage, GlobalAdvantage, GroupAdvantage
from mmrl.advantage.majority import Majority
from mmrl.advantage.rac import Rac
from mmrl.advantage.shaping import Clamp
from mmrl.cli import app
from mmrl.compose.scale import Rank, Running, Standardise
from mmrl.config.dump import dump
from mmrl.config.replaced import replaced
from mmrl.config.resolve import load
from mmrl.config.schema import KeepSection, RefillSection
from mmrl.data.shapes.captions import sample_scene
from mmrl.data.shapes.draw import render
from mmrl.errors import ConfigError, UserError
from mmrl.folder import RunFolder
from mmrl.meter import Meter
from mmrl.objective.objective import Objective
from mmrl.replay.kept import Kept, read, steps
from mmrl.replay.kept import write as write_kept
from mmrl.replay.output import show, write
from mmrl.replay.replayed import Replay, Replayed, same
from mmrl.replay.rescore import Rescored, Rescorer
from mmrl.replay.shift import changed_most, flips, rank_correlation, shift
from mmrl.report.moved import draw_moved, moved_figure
from mmrl.reward import Failed, RewardSet, Use
from mmrl.rollout import FAILED, OK, Sample
from mmrl.stages.rl import RLWork


class Length(Ones):
    """How long an answer is, in words; an answer that starts with a 3 makes it fail."""

    def limits(self) -> tuple[float | None, float | None]:
        return None, None

    def score(self, samples: Sequence[Any]) -> list[Any]:
        return [Failed("no 3") if one.text.startswith("3") else float(len(one.text)) / 3 for one in samples]


class Wins(Ones):
    """The share of the other samples of its group that are shorter."""

    scope = "groupwise"

    def score(self, samples: Sequence[Any]) -> list[float]:
        size = [len(one.text) for one in samples]
        return [sum(other < own for other in size) / len(size) for own in size]


PLAIN: dict[str, Any] = {"ones": Use(Ones(), 1.0)}


def run(folder: Path, objective: Objective, rewards: dict[str, Any], every: int = 1, **section: Any) -> Any:
    """4 steps of an rl stage that keeps its samples; returns its section."""
    policy, own = ToyPolicy(), stage(objective, prompts=Prompts(8), keep_samples=KeepSection(every=every), **section)
    own.rewards = rewards
    work = RLWork(own, policy, FakeGroup(), 7, lambda line: None, folder)  # type: ignore[arg-type]
    for step in range(4):
        gradients(policy, work.updates(step, Meter()))
    return own.section


def again(folder: Path, objective: Objective, rewards: dict[str, Any], section: Any) -> list[tuple[Kept, Rescored]]:
    """Every kept step, and what it is under `rewards` and `objective`."""
    found = steps(folder)
    score = Rescorer(RewardSet(rewards), objective, section, list(found))
    kept = [read(path) for path in found.values()]
    return [(one, score(one)) for one in kept]


RULES: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({"advantage": GroupAdvantage(scale="group")}, PLAIN, {}),
    ({"advantage": GlobalAdvantage()}, {"ones": Use(Ones(), 0.1), "length": Use(Length(), 0.7)}, {}),
    ({"advantage": GroupAdvantage(scale="group")}, {"wins": Use(Wins(), 1.0), "length": Use(Length(), 0.0)}, {}),
    ({"advantage": GroupAdvantage(scale="group"), "combine": "advantages", "rescale": True},
     {"ones": Use(Ones(), 0.3), "length": Use(Length(), 0.7)}, {}),
    ({"advantage": DrAdvantage(), "shaping": (Majority(weight=0.5), Clamp(max=0.3))}, PLAIN, {}),
    ({"advantage": DrAdvantage(), "shaping": (GrpoCare(weight=0.5),)}, PLAIN, {}),
    ({"advantage": DrAdvantage(), "shaping": (Rac(weight=0.5),)}, PLAIN, {}),
    ({"advantage": DcpoAdvantage()}, {"ones": Use(Ones(), 0.3), "length": Use(Length(), 0.7)}, {}),
    ({"advantage": GroupAdvantage(scale="group")}, PLAIN, {"refill": RefillSection(max_rounds=3)}),
    ({"advantage": DrAdvantage()}, {"length": Use(Length(), 1.0, (Running(),))}, {}),
    ({"advantage": GlobalAdvantage()}, {"length": Use(Length(), 1.0, (Rank(),))}, {}),
    ({"advantage": GlobalAdvantage()}, {"length": Use(Length(), 1.0, (Standardise(over="batch"),))}, {"rollout_parts": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "rewards", "section"), RULES)
def test_own_rewards_give_what_is_stored_to_the_last_bit(
    tmp_path: Path, rules: dict[str, Any], rewards: dict[str, Any], section: dict[str, Any]
) -> None:
    ran = run(tmp_path, Objective(**rules), rewards, **section)
    fresh = {
        name: use._replace(then=tuple(type(one)(**one.model_dump()) for one in use.then))
        for name, use in rewards.items()
    }
    moved = 0
    for kept, found in again(tmp_path, Objective(**rules), fresh, ran):
        np.testing.assert_array_equal(found.values, kept.values)
        np.testing.assert_array_equal(found.status, kept.status)
        np.testing.assert_array_equal(found.total, kept.total)
        np.testing.assert_array_equal(found.advantage, kept.advantage)
        moved += int(np.count_nonzero(kept.advantage))
    assert moved > 20


def test_own_rewards_of_two_ranks(tmp_path: Path) -> None:
    trained(tmp_path, 2, keep_samples=KeepSection(every=1))
    section = stage(Objective(DrAdvantage())).section
    for kept, found in again(tmp_path, Objective(DrAdvantage()), PLAIN, section):
        assert np.array_equal(found.advantage, kept.advantage) and kept.advantage.any()


class Batch(Ones):
    """The place of a sample in what is scored together: what no reward should look at, but rounding may."""

    def limits(self) -> tuple[float | None, float | None]:
        return None, None

    def score(self, samples: Sequence[Any]) -> list[float]:
        return [k / len(samples) for k in range(len(samples))]


def test_samples_are_scored_in_the_parts_of_the_training(tmp_path: Path) -> None:
    rewards = {"batch": Use(Batch(), 1.0)}
    ran = run(tmp_path, Objective(DrAdvantage()), rewards, rollout_parts=3)
    for kept, found in again(tmp_path, Objective(DrAdvantage()), rewards, ran):
        assert len(np.unique(kept.place, axis=0)) == 3 and np.array_equal(found.values, kept.values)


def test_rewards_do_not_see_how_the_old_ones_came_about(tmp_path: Path) -> None:
    ran = run(tmp_path, Objective(DrAdvantage()), PLAIN)
    one = read(steps(tmp_path)[1])
    for sample in one.samples:
        sample.meta["graded"] = {"old": "unparsed"}
    Rescorer(RewardSet(PLAIN), Objective(DrAdvantage()), ran, [1])(one)
    assert not any("graded" in sample.meta for sample in one.samples)


def test_other_rewards_give_what_training_with_them_would_have_given(tmp_path: Path) -> None:
    """The toy's weights never move, so both runs draw the same samples."""
    first, second = Objective(GroupAdvantage(scale="group")), Objective(GlobalAdvantage(), shaping=(Clamp(max=1),))
    other = {"length": Use(Length(), 0.5), "wins": Use(Wins(), 0.2)}
    ran = run(tmp_path / "a", first, PLAIN)
    run(tmp_path / "b", second, other)
    wanted = [read(path) for path in steps(tmp_path / "b").values()]
    for (kept, found), want in zip(again(tmp_path / "a", second, other, ran), wanted, strict=True):
        np.testing.assert_array_equal(found.total, want.total)
        np.testing.assert_array_equal(found.advantage, want.advantage)
        assert not np.array_equal(found.advantage, kept.advantage)
        failed = found.status[:, 0] == FAILED
        assert failed.any() and not found.advantage[failed].any() and len(found.messages) == failed.sum()
        assert np.isnan(found.total[failed]).all()


REFUSED: list[tuple[Objective, dict[str, Any], int, str]] = [
    (Objective(BranchAdvantage()), PLAIN, 1, "advantage branchadvantage is about the steps of a tree"),
    (Objective(DcpoAdvantage()), PLAIN, 2, "advantage dcpoadvantage remembers the steps before, .* and these are 1, 2, 4"),
    (Objective(DrAdvantage()), {"ones": Use(Ones(), 1.0, (Running(),))}, 2,
     "transform running of reward 'ones' remembers the steps before"),
    (Objective(DrAdvantage(), shaping=(GrpoCare(),)), PLAIN, 1, r"shaping grpocare needs .consistency., .*it has: length\)"),
    (Objective(DrAdvantage(), shaping=(Rac(),)), PLAIN, 1, "shaping rac needs 'rac'"),
    (Objective(DrAdvantage()), {"ones": Use(Ones(), 0.0)}, 1, "no reward is trained on"),
]  # fmt: skip


@pytest.mark.parametrize(("objective", "rewards", "every", "message"), REFUSED)
def test_what_needs_more_than_was_kept_is_refused(
    tmp_path: Path, objective: Objective, rewards: dict[str, Any], every: int, message: str
) -> None:
    ran = run(tmp_path, Objective(DrAdvantage()), PLAIN, every)
    with pytest.raises(UserError, match=message):
        again(tmp_path, objective, rewards, ran)


def test_a_part_of_a_step_has_advantages_only_inside_its_groups(tmp_path: Path) -> None:
    rule = Objective(GroupAdvantage(scale="group"))
    trained(tmp_path, objective=rule, keep_samples=KeepSection(every=1, groups=2))
    section = stage(rule).section
    for kept, found in again(tmp_path, rule, PLAIN, section):
        assert len(kept.samples) == 12 and np.array_equal(found.advantage, kept.advantage) and kept.advantage.any()
    for far, rewards in (
        (GlobalAdvantage(), PLAIN),
        (DrAdvantage(), {"ones": Use(Ones(), 1.0, (Standardise(over="batch"),))}),
    ):
        with pytest.raises(UserError, match=r"look beyond their group, and keep_samples.groups kept 12 of the 24"):
            again(tmp_path, Objective(far), rewards, section)
    with pytest.raises(UserError, match=r"remembers all samples, and keep_samples.groups kept some"):
        again(tmp_path, Objective(DcpoAdvantage()), PLAIN, section)


def test_advantages_of_steps_do_not_compare(tmp_path: Path) -> None:
    ran = run(tmp_path, Objective(DrAdvantage()), PLAIN)
    one = read(steps(tmp_path)[1])
    one.advantage = np.zeros((24, 5))
    with pytest.raises(UserError, match="an advantage for every step of a sample"):
        Rescorer(RewardSet(PLAIN), Objective(DrAdvantage()), ran, [1])(one)


def naive(
    old: list[float], new: list[float], before: list[float], after: list[float], group: list[int]
) -> dict[str, Any]:
    """What `shift` says, in loops."""
    both = [i for i in range(len(old)) if not math.isnan(old[i]) and not math.isnan(new[i])]

    def pearson(a: list[float], b: list[float]) -> float | None:
        if len(a) < 2 or max(a) == min(a) or max(b) == min(b):
            return None
        ma, mb = math.fsum(a) / len(a), math.fsum(b) / len(b)
        top = math.fsum((x - ma) * (y - mb) for x, y in zip(a, b, strict=True))
        return top / math.sqrt(math.fsum((x - ma) ** 2 for x in a) * math.fsum((y - mb) ** 2 for y in b))

    def ranks(a: list[float]) -> list[float]:
        return [sum(y < x for y in a) + (sum(y == x for y in a) - 1) / 2 for x in a]

    def mean(a: list[float]) -> float | None:
        return math.fsum(a) / len(a) if a else None

    own, other = [old[i] for i in both], [new[i] for i in both]
    changed = []
    for key in sorted(set(group)):
        rows = [i for i in both if group[i] == key]
        if len(rows) > 1:
            first = {i for i in rows if all(old[i] >= old[j] for j in rows)}
            then = {i for i in rows if all(new[i] >= new[j] for j in rows)}
            changed.append(float(not first & then))
    return {
        "samples": len(old),
        "compared": len(both),
        "old_mean": mean([x for x in old if not math.isnan(x)]),
        "new_mean": mean([x for x in new if not math.isnan(x)]),
        "pearson": pearson(own, other),
        "spearman": pearson(ranks(own), ranks(other)),
        "flipped": mean([float(before[i] > 0 > after[i] or before[i] < 0 < after[i]) for i in both]),
        "best": mean(changed),
        "moved": mean([abs(after[i] - before[i]) for i in both]),
        "groups": len(set(group)),
        "flat_old": sum(all(before[i] == 0 for i in range(len(old)) if group[i] == key) for key in set(group)),
        "flat_new": sum(all(after[i] == 0 for i in range(len(old)) if group[i] == key) for key in set(group)),
    }


@pytest.mark.parametrize("seed", range(12))
def test_statistics_are_those_of_loops(seed: int) -> None:
    random = np.random.default_rng(seed)
    n = int(random.integers(1, 40))
    group = random.integers(0, max(1, n // 4), n) * 3
    old, new = (np.where(random.random(n) < 0.15, np.nan, random.integers(0, 5, n) / 3) for _ in range(2))
    before, after = (random.integers(-2, 3, n) * (group % 2 if seed % 3 else 1) * 0.37 for _ in range(2))
    got, want = vars(shift(old, new, before, after, group)), naive(*map(list, (old, new, before, after, group)))  # type: ignore[arg-type]
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert (got[key] is None) if value is None else got[key] == pytest.approx(value, rel=1e-12, abs=1e-12), key


def test_nothing_to_compare_has_no_number() -> None:
    none, zero = np.full(3, np.nan), np.zeros(3)
    found = shift(none, np.ones(3), zero, zero, np.zeros(3, dtype=np.int64))
    assert (found.pearson, found.spearman, found.flipped, found.best, found.moved) == (None,) * 5
    assert found.old_mean is None and found.new_mean == 1 and (found.flat_old, found.flat_new) == (1, 1)
    assert rank_correlation(none, none) is None


def test_zero_is_no_sign() -> None:
    before, after = np.array([1, -1, 0, 1, -1.0]), np.array([-1, 1, 1, 0, -2.0])
    assert flips(before, after).tolist() == [True, True, False, False, False]


def test_groups_that_change_most_come_first() -> None:
    random = np.random.default_rng(0)
    group = random.integers(0, 9, 50)
    before, after = random.normal(size=50), random.normal(size=50)
    after[group == 4] = before[group == 4]
    size = {key: math.fsum(abs(after - before)[group == key]) / (group == key).sum() for key in set(group.tolist())}
    want = sorted((key for key in size if key != 4), key=lambda key: -size[key])
    found = changed_most(before, after, group, 5)
    assert [int(group[rows[0]]) for rows in found] == want[:5]
    assert all(rows.tolist() == np.flatnonzero(group == group[rows[0]]).tolist() for rows in found)
    assert len(changed_most(before, after, group, 99)) == 8 and not changed_most(before, before, group, 5)


def colours(png: bytes, folder: Path) -> set[str]:
    """Which of the two colours of the points are in a picture."""
    (folder / "p.png").write_bytes(png)
    pixels = np.asarray(Image.open(folder / "p.png").convert("RGB")).astype(int)
    left = pixels[:-60, : pixels.shape[1] // 2]  # without the key below
    red, blue = left[..., 0] - left[..., 2], left[..., 2] - left[..., 0]
    return {name for name, much in (("red", red), ("blue", blue)) if (much > 90).any()}


def test_the_picture_shows_flips_in_a_colour_of_their_own(tmp_path: Path) -> None:
    total, a = np.arange(4.0), np.array([1.0, -1.0, 0.5, -0.5])
    assert colours(draw_moved(total, total, a, a, "t"), tmp_path) == {"blue"}
    assert colours(draw_moved(total, total, a, -a, "t"), tmp_path) == {"red"}
    assert colours(draw_moved(total, total, a, a * [1, -1, 1, 1], "t"), tmp_path) == {"red", "blue"}
    assert colours(draw_moved(np.full(4, np.nan), total, a, -a, "t"), tmp_path) == set()


def test_both_advantages_have_one_scale_and_both_totals_one_range() -> None:
    old, new, a = np.arange(4.0), 10 + np.arange(4.0), np.array([1.0, -1.0, 0.5, -0.5])
    figure = moved_figure(old, new, a, 3 * a, "mine/001, stage rl")
    points, above, below = figure.axes
    assert points.get_xlim() == points.get_ylim() and points.get_xlim()[1] > 3 and points.get_aspect() == 1
    assert above.get_xlim() == below.get_xlim() and above.get_xlim()[0] < 0 and above.get_xlim()[1] > 13
    widths = {round(bar.get_width(), 9) for axes in (above, below) for bar in axes.patches}
    assert len(widths) == 1 and figure.get_suptitle() == "mine/001, stage rl"


def replayed(folder: Path, rewards: dict[str, Any], objective: Objective, every: int = 2) -> Replay:
    ran = run(folder / "kept", Objective(GroupAdvantage(scale="group")), PLAIN, every)
    found = Replay("other", "mine/001", "rl", RewardSet(rewards))
    for kept, one in again(folder / "kept", objective, rewards, ran):
        found.steps.append(Replayed(kept, tuple(sample.prompt.id for sample in kept.samples), one))
    return found


def test_what_is_the_same_as_stored_is_counted(tmp_path: Path) -> None:
    found = replayed(tmp_path, {"ones": Use(Length(), 1.0)}, Objective(DrAdvantage()))
    alike = sum(
        a == b
        for one in found.steps
        for a, b in zip(one.again.values[:, 0].tolist(), one.kept.values[:, 0].tolist(), strict=True)
    )
    assert same(found)[:2] == (alike, 72) and 0 < alike < 72


def test_tables_and_files(tmp_path: Path) -> None:
    found = replayed(tmp_path, {"ones": Use(Ones(), 0.5), "length": Use(Length(), 1.0)}, Objective(DrAdvantage()))
    with (tmp_path / "said.txt").open("w") as file:
        show(found, Console(file=file, width=200))
    said = (tmp_path / "said.txt").read_text().splitlines()
    assert [line.split()[:2] for line in said[1:6]] == [
        ["step", "samples"], ["1", "24"], ["2", "24"], ["4", "24"], ["all", "72"]
    ]  # fmt: skip
    total = np.concatenate([one.again.total for one in found.steps])
    assert said[5].split()[4] == f"{np.nanmean(total):.4g}" and said[5].split()[2] == str(int(np.isnan(total).sum()))
    rows = {line.split()[0]: line.split()[1:] for line in said if line.startswith(("ones", "length"))}
    status = np.concatenate([one.again.status for one in found.steps])
    assert rows["ones"][2:] == ["72", "0", "0"] and rows["length"][:1] == ["1"]
    assert rows["length"][2:4] == [str((status[:, 1] == OK).sum()), str((status[:, 1] == FAILED).sum())]
    assert sum(line.startswith(tuple("01234567")) and " -> " in line and "#" in line for line in said) == 10
    assert same(found)[:2] == (72, 72) and same(found)[3] == 72 > same(found)[2]
    lines, table, picture = write(found, tmp_path / "out")
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(records) == 72 and {record["step"] for record in records} == {1, 2, 4}
    advantages = np.concatenate([one.again.advantage for one in found.steps])
    assert [record["new"]["advantage"] for record in records] == advantages.tolist()
    broken = [record for record in records if record["new"]["status"]["length"] == "failed"]
    assert broken and all(
        record["new"]["total"] is None and record["new"]["values"]["length"] is None for record in broken
    )
    assert all(record["old"]["values"] == {"ones": record["old"]["total"]} for record in records)
    numbers = json.loads(table.read_text())
    assert numbers["steps"].keys() == {"1", "2", "4", "all"} and numbers["same_values"] == [72, 72]
    assert numbers["steps"]["all"]["compared"] == 72 - len(broken) and numbers["steps"]["all"]["flipped"] > 0
    assert Image.open(picture).size[0] > 800


CONFIG = """
policy: {name: tiny_sd3, layers: 2, heads: 1}
stages:
  rl:
    kind: rl
    steps: 2
    prompts: {name: shapes}
    prompts_per_step: 2
    group_size: 3
    rewards: {dense: {name: shapes}}
    objective: {advantage: {name: group, scale: group}, shaping: [{name: clamp, max: 5}], surrogate: {name: clip, low: 1e-3, high: 1e-3}}
    optimizer: {lr: 1e-3}
evaluation:
  prompts: {name: shapes, split: held_out}
  rewards: {strict: {name: shapes, mode: strict}}
"""


def configs(folder: Path, text: str) -> tuple[Any, str]:
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "new.yaml").write_text(text)
    (folder / "own.py").write_text("def mine(samples, a=1):\n    return [a for _ in samples]\n")
    return load(str(folder / "config.yaml")), str(folder / "new.yaml")


def test_a_file_with_rewards_alone_keeps_the_rules(tmp_path: Path) -> None:
    own, new = configs(tmp_path, 'rewards: {strict: {name: "own.py:mine", a: 3, weight: 2, then: [{name: rank}]}}')
    found, name = replaced(own, "rl", new)
    assert name == "new" and list(found.rewards) == ["strict"] and found.rewards["strict"].weight == 2
    assert found.objective == own.stages[0].objective and found.rewards["strict"].then == (Rank(),)


def test_rules_of_the_file_replace_those_of_the_run(tmp_path: Path) -> None:
    own, new = configs(
        tmp_path, "rewards: {a: {name: shapes}}\nobjective: {advantage: {name: dr}, combine: advantages}"
    )
    found, _ = replaced(own, "rl", new)
    assert isinstance(found.objective.advantage, DrAdvantage) and found.objective.combine == "advantages"
    assert found.objective.shaping == own.stages[0].objective.shaping == (Clamp(max=5),)
    own, new = configs(tmp_path, "rewards: {a: {name: shapes}}\nobjective: {shaping: []}")
    assert replaced(own, "rl", new)[0].objective.shaping == ()


def test_a_whole_config_gives_its_stage(tmp_path: Path) -> None:
    own, new = configs(tmp_path, CONFIG.replace("dense:", "other:").replace("  rl:", "  second:"))
    assert list(replaced(own, "rl", new)[0].rewards) == ["other"]
    two = CONFIG.replace("  rl:", "  a: &a").replace(
        "evaluation:", "  b: {<<: *a, rewards: {late: {name: shapes}}}\nevaluation:"
    )
    own, new = configs(tmp_path, two)
    assert list(replaced(own, "a", new)[0].rewards) == ["dense"]
    with pytest.raises(UserError, match=r"has no rl stage 'rl' to take the rewards of \(its rl stages: a, b\)"):
        replaced(own, "rl", new)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rewards: {a: {name: shapes}}\nreward: 1", "new.yaml:2: reward: unknown key 'reward'; did you mean 'rewards'"),
        ("objective: {}", "new.yaml: rewards: "),
        ("rewards: {a: {name: shpes}}", "new.yaml:1: stages.rl.rewards.a.name: unknown reward 'shpes'"),
        ("rewards:\n  a: {name: shapes,\n      mod: dense}", "new.yaml:3: stages.rl.rewards.a.mod: unknown key 'mod'"),
        (
            "rewards: {a: {name: shapes}}\nobjective: {surrogate: {name: clip}}",
            "new.yaml:2: objective.surrogate: unknown key",
        ),
        ("rewards: {a: {name: shapes}}\nobjective: {rescale: true}", "new.yaml:2 .*rescale .* add combine: advantages"),
        ("rewards: {a: {name: shapes}}\nobjective: {shaping: [{name: majority, weigt: 1}]}", "new.yaml:2: .*weigt"),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path: Path, text: str, message: str) -> None:
    own, new = configs(tmp_path, text)
    with pytest.raises(ConfigError, match=message):
        replaced(own, "rl", new)


@pytest.fixture
def shapes_run(tmp_path: Path) -> Path:
    """A run's folder with two kept steps of 2 x 3 pictures, half of them drawn for another prompt."""
    own, _ = configs(tmp_path, "rewards: {a: {name: shapes}}")
    folder = RunFolder(tmp_path / "run")
    folder.create(dump(own), {})
    prompts = own.stages[0].prompts.load()
    score = Rescorer(RewardSet(own.stages[0].rewards), own.stages[0].objective, own.stages[0].section, [1, 2])
    for step in (1, 2):
        samples = []
        for k in range(6):
            prompt, other = prompts[7 * step + k // 3], prompts[50 + 9 * step + k]
            image = own_picture(prompt if k % 3 < 2 else other, k)
            samples.append(Sample(prompt, images=(image,), meta={"seed": k, "latents": np.zeros(1)}))
        kept = filled(samples, step=step, names=("dense",), weights=(1.0,), group=np.repeat([0, 1], 3), drawn=6)
        found = score(kept)
        kept = replace(kept, **{key: getattr(found, key) for key in ("values", "status", "total", "advantage")})
        write_kept(folder.path / "kept" / "rl", kept, FakeGroup())
    return folder.path


def own_picture(prompt: Any, seed: int) -> np.ndarray:
    scene = sample_scene(prompt.target, np.random.default_rng(seed))
    return np.asarray(render(scene), dtype=np.uint8)


def command(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["reward", "replay", *map(str, arguments)])


def test_the_command(shapes_run: Path) -> None:
    done = command(shapes_run, "--rewards", shapes_run / "config.yaml")
    assert done.exit_code == 0, done.output
    assert "same as stored: 12 of 12 values" in done.output and "same as stored: 12 of 12 advantages" in done.output
    assert "no advantage changed" in done.output
    assert "kept without what JSON cannot hold: meta.latents" in done.output
    assert json.loads((shapes_run / "replay/config/replay.json").read_text())["same_advantages"] == [12, 12]
    new = shapes_run.parent / "new.yaml"
    new.write_text("rewards: {jpeg: {name: jpeg_compressibility}, broken: {name: 'own.py:bad', weight: 0}}")
    (shapes_run.parent / "own.py").write_text("def bad(samples):\n    raise RuntimeError('gone')\n")
    done = command(shapes_run, "--rewards", new, "--stage", "rl", "--steps", "2", "--out", shapes_run / "x")
    assert done.exit_code == 0, done.output
    assert "same as stored: 0 of 6 advantages" in done.output and "values (of rewards" not in done.output
    assert (
        done.output.count("failed: reward 'broken' raised RuntimeError: gone") == 3 and "failed: 3 more" in done.output
    )
    assert len((shapes_run / "x/replay.jsonl").read_text().splitlines()) == 6
    assert (shapes_run / "x/replay.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "2,9"], "--steps 9: no samples of that step of stage rl were kept; there is: 1, 2"),
        (["--steps", "2-9"], "--steps 2-9: expected numbers of steps with commas between them"),
        (["--stage", "warm"], "--stage warm: .* has no rl stage of that name \\(it has: rl\\)"),
        (["--rewards", "nowhere.yaml"], "no config 'nowhere.yaml'"),
    ],
)
def test_what_the_command_refuses(shapes_run: Path, arguments: list[str], message: str) -> None:
    file = [] if "--rewards" in arguments else ["--rewards", shapes_run / "config.yaml"]
    done = command(shapes_run, *file, *arguments)
    assert isinstance(done.exception, UserError) and re.search(message, str(done.exception))


def test_a_run_that_kept_nothing_is_told_how_to(shapes_run: Path) -> None:
    shutil.rmtree(shapes_run / "kept")
    done = command(shapes_run, "--rewards", shapes_run / "config.yaml")
    assert "no samples were kept in" in str(done.exception)
    assert "train with stages.rl.keep_samples={every: 10}" in str(done.exception)
