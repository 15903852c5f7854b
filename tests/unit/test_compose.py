"""Rewards that are changed, gated and filtered before they are summed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from ruamel.yaml import YAML

from mmrl.advantage.constraint import Constraint
from mmrl.advantage.types import Floats, Scored
from mmrl.components import build
from mmrl.compose.transform import Seen, Transform
from mmrl.config.dump import dump
from mmrl.config.resolve import load
from mmrl.errors import ConfigError, UserError
from mmrl.objective.objective import Objective
from mmrl.reward import Reward, RewardSet, Use
from mmrl.rollout import OK, SKIPPED, Prompt, Sample, Scores

NAN = float("nan")
GROUP = np.array([0, 0, 1, 1])


class Told(Reward):
    """The number that a sample's meta has under `key`."""

    key: str

    def score(self, samples: Sequence[Sample]) -> list[Any]:
        return [sample.meta[self.key] for sample in samples]


def use(key: str, weight: float = 1.0, then: Sequence[dict[str, Any]] = (), **more: Any) -> Use:
    return Use(Told(key=key), weight, tuple(build("transform", one) for one in then), **more)


def samples(kind: Sequence[str] = ("a",) * 4, **columns: Sequence[Any]) -> list[Sample]:
    return [
        Sample(
            Prompt(str(row // 2), "", meta={"kind": kind[row]}),
            meta={key: column[row] for key, column in columns.items()},
        )
        for row in range(4)
    ]


def total(rewards: dict[str, Use], given: list[Sample]) -> np.ndarray:
    own = RewardSet(rewards)
    return own.total(own.score(given), GROUP)


def test_a_process_counts_only_where_the_outcome_is_right() -> None:
    """P-GRPO: R = R_fmt + R_out + R_out R_proc."""
    rewards = {"form": use("f"), "out": use("o"), "process": use("p", then=[{"name": "times", "by": "out"}])}
    given = samples(f=[1, 0, 1, 0], o=[1, 1, 0, 0], p=[0.5, 0.25, 1.0, 1.0])
    assert total(rewards, given).tolist() == [2.5, 1.25, 1.0, 0.0]
    gated = rewards | {"process": use("p", then=[{"name": "gate", "by": "out", "at_least": 1.0, "floor": 0.0}])}
    assert total(gated, given).tolist() == [2.5, 1.25, 1.0, 0.0]


def test_transforms_run_in_order_and_see_others_as_they_were() -> None:
    rewards = {
        "a": use("a", 2.0, [{"name": "affine", "mean": 1.0}, {"name": "clip", "low": 0.0, "high": 2.0}]),
        "b": use("b", 1.0, [{"name": "times", "by": "a"}]),
    }
    assert total(rewards, samples(a=[0, 1, 2, 9], b=[1, 1, 1, 1])).tolist() == [0.0, 1.0, 4.0, 13.0]


def test_nothing_in_then_is_the_weighted_sum() -> None:
    given = samples(a=[1, 2, 3, 4], b=[0, 1, 0, NAN])
    plain = total({"a": use("a", 0.5), "b": use("b", 2.0)}, given)
    same = total(
        {"a": use("a", 0.5, [{"name": "affine"}]), "b": use("b", 2.0, [{"name": "clip", "low": -9, "high": 9}])}, given
    )
    np.testing.assert_array_equal(plain, same)
    assert plain.tolist()[:3] == [0.5, 3.0, 1.5] and np.isnan(plain[3])


def test_a_gate_that_failed_is_no_number_and_one_that_does_not_apply_is_left_out() -> None:
    rewards = {
        "main": use("m"),
        "extra": use("e", then=[{"name": "gate", "by": "gate", "at_least": 0.5, "floor": 0.0}]),
        "gate": use("g", 0.0),
    }
    got = total(rewards, samples(m=[1, 2, 3, 4], e=[10, 10, 10, 10], g=[1.0, NAN, None, None]))
    assert got.tolist()[0] == 11.0 and np.isnan(got[1]) and got.tolist()[2:] == [3.0, 4.0]


def test_where_asks_a_reward_about_some_prompts_only() -> None:
    rewards = {"all": use("a"), "some": use("b", where={"kind": ["count", "locate"]})}
    own = RewardSet(rewards)
    scores = own.score(samples(kind=("count", "count", "other", "other"), a=[1] * 4, b=[5, 6, NAN, NAN]))
    assert scores.status[:, 1].tolist() == [OK, OK, SKIPPED, SKIPPED] and not scores.messages
    assert own.total(scores, GROUP).tolist() == [6.0, 7.0, 1.0, 1.0]


def test_an_unknown_reward_in_a_transform_is_refused() -> None:
    with pytest.raises(UserError, match="reward 'a' is changed by what reward 'right' says, which is not one of a"):
        RewardSet({"a": use("a", then=[{"name": "times", "by": "right"}])})


def test_a_transform_that_makes_no_number_is_refused() -> None:
    class Wrong(Told):
        pass

    from mmrl.compose.transform import Transform

    class Endless(Transform):
        def __call__(self, values: Any, seen: Any) -> Any:
            return values / 0.0

    rewards = RewardSet({"a": Use(Told(key="a"), 1.0, (Endless(),))})
    scores = rewards.score(samples(a=[1, 1, 1, 1]))
    with pytest.raises(UserError, match="transform Endless of reward 'a' made"), np.errstate(divide="ignore"):
        rewards.total(scores, GROUP)


def test_a_transform_that_writes_into_scores_is_stopped() -> None:
    class Writes(Transform):
        into: Literal["own", "others"]

        def __call__(self, values: Floats, seen: Seen) -> Floats:
            given = values if self.into == "own" else seen.scores["a"]
            given -= 1
            return values

    for into in ("own", "others"):
        rewards = RewardSet({"a": Use(Told(key="a"), 1.0, (Writes(into=into),))})
        scores = Scores(("a",), np.ones((2, 1)), np.zeros((2, 1), dtype=np.int64))
        with pytest.raises(ValueError, match="read-only"):
            rewards.total(scores, [0, 0])
        assert scores.values.tolist() == [[1.0], [1.0]]


def test_what_transforms_remember_survives_json_and_is_logged() -> None:
    def new() -> RewardSet:
        then = [{"name": "running"}, {"name": "lagrange", "at_least": 0.5, "start": 1.0, "rate": 0.5}]
        return RewardSet({"a": use("a", then=then), "b": use("b")})

    first, second = new(), new()
    scores = first.score(samples(a=[0, 1, 2, 9], b=[0] * 4))
    first.remember(scores, GROUP)
    second.load_state(json.loads(json.dumps(first.state())))
    later = first.score(samples(a=[1, 1, 5, 5], b=[0] * 4))
    np.testing.assert_array_equal(first.total(later, GROUP), second.total(later, GROUP))
    assert not np.array_equal(first.total(later, GROUP), new().total(later, GROUP))
    found = first.transform_metrics(scores, GROUP)
    assert found["a/running_mean"] == 3.0 and found["a/multiplier"] == pytest.approx(1.25) and "a/then" in found
    assert "b/then" not in found


def test_how_often_a_gate_opens_is_logged() -> None:
    gate = {"name": "gate", "by": "b", "at_least": 0.5, "floor": 0.0}
    rewards = RewardSet({"a": use("a", then=[gate]), "b": use("b")})
    scores = rewards.score(samples(a=[1, 1, 1, 1], b=[0, 1, 1, 1]))
    assert rewards.transform_metrics(scores, GROUP)["a/open"] == 0.75


def test_advantages_of_single_rewards_see_what_then_made() -> None:
    """`combine: advantages` weighs what comes out of `then`; shapings read scores as they were given."""
    rewards = RewardSet({"a": use("a", then=[{"name": "clip", "low": 0.0, "high": 1.0}]), "b": use("b")})
    scores = rewards.score(samples(a=[0, 5, 1, 9], b=[0, 1, 0, 1]))
    values, _ = rewards.composed(scores, GROUP)
    scored = Scored(
        rewards.total(scores, GROUP), GROUP, values, np.array([1.0, 1.0]), names=("a", "b"), scores=scores.values
    )
    assert scored.column("a").tolist() == [0.0, 5.0, 1.0, 9.0]
    got = Objective(build("advantage", {"name": "dr"}), combine="advantages").advantages(scored)
    assert got.tolist() == [-1.0, 1.0, -0.5, 0.5]


def test_a_constraint_keeps_the_order_of_those_who_keep_it() -> None:
    failed = np.array([[False, False]] * 3 + [[False, True]])
    scores = np.array([[1.0, 0.9], [3.0, 0.1], [2.0, 0.8], [9.0, NAN]])
    scored = Scored(
        scores[:, 0], np.zeros(4, dtype=int), scores, np.array([1.0, 0.0]), names=("main", "safe"), failed=failed
    )
    constraint = Constraint(by="safe", at_least=0.5, margin=0.5)
    got = constraint.before(scored).reward
    assert got.tolist()[:3] == [1.0, 0.5, 2.0] and np.isnan(got[3])
    assert constraint.metrics(scored) == {"constraint/safe/broken": pytest.approx(1 / 3)}


CONFIG = """
policy: {name: tiny_sd3}
stages:
  rl:
    kind: rl
    steps: 2
    prompts_per_step: 2
    group_size: 4
    optimizer: {lr: 1.0e-3}
    prompts: {name: shapes}
    rewards:
      dense: {name: shapes, then: [{name: standardise}, {name: clip, low: -2, high: 2}], where: {kind: count}, on_failure: raise}
      small: {name: jpeg_compressibility, weight: 0.5, then: [{name: gate, by: dense, at_least: 0.5, floor: -1}]}
    rollout: {num_steps: 4}
    objective: {advantage: {name: group, scale: group}, combine: advantages, rescale: true}
"""


def loaded(tmp_path: Path, old: str = "", new: str = "") -> Any:
    file = tmp_path / "run.yaml"
    assert not old or old in CONFIG
    file.write_text(CONFIG.replace(old, new) if old else CONFIG)
    return load(str(file))


def test_a_config_is_dumped_with_its_composition(tmp_path: Path) -> None:
    settings = dump(loaded(tmp_path, "where: {kind: count}, "))
    again = tmp_path / "again.yaml"
    with again.open("w") as file:
        YAML().dump(settings, file)
    assert dump(load(str(again))) == settings
    stage = settings["stages"]["rl"]
    assert [one["name"] for one in stage["rewards"]["dense"]["then"]] == ["standardise", "clip"]
    assert stage["rewards"]["dense"]["on_failure"] == "raise"
    assert stage["objective"]["combine"] == "advantages" and stage["objective"]["rescale"] is True


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("by: dense", "by: dens", "run.yaml:13: .*then.0: reads a reward 'dens', which this stage does not have"),
        ("{name: standardise}", "{name: standardize}", "unknown transform 'standardize'; did you mean 'standardise'"),
        ("low: -2, high: 2", "low: 2, high: 2", "low 2 must be below high 2"),
        ("{kind: count}", "{kind: dance}", "is for prompts where {'kind': 'dance'}, and none of the .* is one"),
        ("{kind: count}", "{kin: count}", "where.kin: no prompt has 'kin' in its meta; did you mean 'kind'"),
        ("at_least: 0.5", "at_least: 2", "no score of 'dense' is above 1, so at_least 2 never opens it"),
        ("at_least: 0.5", "at_least: 0", "no score of 'dense' is below 0, so at_least 0 never shuts it"),
        ("on_failure: raise", "wieght: 2, on_failure: raise", "unknown key 'wieght'; did you mean 'weight'"),
        ("on_failure: raise", "on_failure: zero", "on_failure"),
        (", floor: -1", "", "floor"),
        (
            "{name: standardise}",
            "{name: lagrange, at_least: 0.5}",
            "combine: advantages lets the advantage rule see this reward by itself",
        ),
        (
            "{name: standardise}",
            "{name: lagrange, at_most: 0.5}",
            "at_most asks for a negative weight, got 1: it would teach the opposite",
        ),
        ("{name: standardise}", "{name: lagrange}", "expected one bound, got at_least None and at_most None"),
    ],
)
def test_mistakes_in_a_composition_are_one_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    start = CONFIG.replace("where: {kind: count}, ", "") if "kind" not in old else CONFIG
    file = tmp_path / "run.yaml"
    assert old in start
    file.write_text(start.replace(old, new))
    with pytest.raises(ConfigError, match=said) as caught:
        load(str(file))
    assert len(str(caught.value).splitlines()) <= (2 if "at_most: 0.5" in new else 1), str(caught.value)


def test_an_evaluation_and_a_direct_stage_take_scores_as_they_are(tmp_path: Path) -> None:
    text = CONFIG.replace("where: {kind: count}, ", "")
    evaluation = "evaluation: {prompts: {name: shapes}, rewards: {strict: {name: shapes, mode: strict, %s}}}\n"
    file = tmp_path / "run.yaml"
    file.write_text(text + evaluation % "weight: 2")
    with pytest.raises(ConfigError, match="leave 'weight' out"):
        load(str(file))
    file.write_text(text + evaluation % "then: [{name: rank}]")
    with pytest.raises(
        ConfigError, match="an evaluation reports scores as they are, and failures as a count; leave 'then' out"
    ):
        load(str(file))


def test_a_reward_for_some_prompts_may_have_none_in_an_evaluation(tmp_path: Path) -> None:
    """Held-out prompts need not have every kind that is trained; a held-out reward without a prompt is a mistake."""
    row = {"id": "a", "text": "two red circles", "meta": {"kind": "other"}}
    (tmp_path / "held.jsonl").write_text(json.dumps(row) + "\n")
    evaluation = (
        "evaluation: {prompts: {name: jsonl, path: held.jsonl}, rewards: {flat: {name: jpeg_compressibility%s}}}\n"
    )
    file = tmp_path / "run.yaml"
    file.write_text(CONFIG + evaluation % "")
    assert load(str(file)).evaluation is not None
    file.write_text(CONFIG + evaluation % ", where: {kind: count}")
    with pytest.raises(ConfigError, match=r"reward 'flat' is for prompts where .* and none of the 1 is one"):
        load(str(file))
