"""A failed reward is never a number: statuses, messages, totals and the budget, as a reward's author meets them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from mmrl.errors import RunError, UserError
from mmrl.failures import FailureBudget
from mmrl.reward import Failed, Graded, Reward, RewardSet, set_up
from mmrl.rollout import FAILED, OK, SKIPPED, Prompt, Sample, Scores

NAN = float("nan")


class Given(Reward):
    """Returns, per sample, what its meta says under `key`; an exception there is raised."""

    key: str = "score"

    def score(self, samples: Sequence[Sample]) -> Sequence[float | None]:
        for sample in samples:
            if isinstance(sample.meta[self.key], BaseException):
                raise sample.meta[self.key]
        return [sample.meta[self.key] for sample in samples]


class Custom(Reward):
    """Calls a function with the samples."""

    act: Callable[..., Any]

    def score(self, samples: Sequence[Sample]) -> Sequence[float | None]:
        return self.act(samples)


def sample(score: Any = 1.0, prompt: str = "p", **fields: Any) -> Sample:
    return Sample(Prompt(id=prompt, text=prompt), meta={"score": score}, **fields)


def one(reward: Reward, samples: Sequence[Sample]) -> Scores:
    return RewardSet({"x": (reward, 1.0)}).score(samples)


def test_one_raising_sample_of_eight_fails_alone() -> None:
    samples = [sample(float(i)) for i in range(8)]
    samples[5].meta["score"] = ValueError("bad\n  picture")
    scores = one(Given(), samples)
    assert scores.status[:, 0].tolist() == [OK] * 5 + [FAILED] + [OK] * 2
    assert np.isnan(scores.values[5, 0]) and scores.values[7, 0] == 7.0
    (message,) = scores.messages
    assert message.startswith("reward 'x' raised ValueError: bad picture on sample 5 of prompt 'p' (")
    assert "test_reward_scoring.py:" in message and "\n" not in message


def test_a_reward_that_always_raises_fails_every_sample() -> None:
    scores = one(Given(), [sample(RuntimeError("no server")) for _ in range(3)])
    assert (scores.status == FAILED).all() and len(scores.messages) == 3


def test_the_line_in_a_message_is_the_authors() -> None:
    def act(samples: Sequence[Sample]) -> list[float]:
        return [json.loads("{") for _ in samples]  # the author's line; the exception is raised inside the library

    (message,) = one(Custom(act=act), [sample()]).messages
    line = act.__code__.co_firstlineno + 1
    assert f"test_reward_scoring.py:{line})" in message


def test_a_user_can_stop() -> None:
    with pytest.raises(KeyboardInterrupt):
        one(Given(), [sample(KeyboardInterrupt())])


def test_a_reward_that_leaves_has_failed_and_ends_no_run() -> None:
    scores = one(Given(), [sample(), sample(SystemExit(0))])
    assert scores.status[:, 0].tolist() == [OK, FAILED]
    assert scores.messages[0].startswith(
        "reward 'x' raised RuntimeError: called sys.exit(0) on sample 1 of prompt 'p' ("
    )
    with pytest.raises(UserError, match=r"it cannot be loaded: RuntimeError: called sys\.exit\(0\)"):
        set_up(Leaves(), "it", torch.device("cpu"))


class Leaves(Reward):
    def setup(self, device: torch.device) -> None:
        raise SystemExit(0)

    def score(self, samples: Sequence[Sample]) -> Sequence[float | None]:
        return []


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


class Vague(float):
    def __float__(self) -> float:
        raise RuntimeError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Mute(), "reward 'x' raised Mute: ? on sample 1"),
        ([Mute()], "reward 'x' returned ? (list) on sample 1"),
        (Vague(1), "returned 1.0 (Vague) on sample 1"),
        (ValueError("a\ud800b \x1b[31m"), "raised ValueError: a\\ud800b \\x1b[31m on sample 1"),
    ],
)
def test_a_failure_that_cannot_be_told_is_told_all_the_same(given: Any, message: str) -> None:
    scores = one(Given(), [sample(), sample(given), sample()])
    assert scores.status[:, 0].tolist() == [OK, FAILED, OK]
    assert message in scores.messages[0] and scores.messages[0].isprintable()


def test_a_prompt_of_several_lines_is_told_in_one() -> None:
    (message,) = one(Given(), [sample(NAN, prompt="a\nb")]).messages
    assert "prompt 'a\\nb'" in message


@pytest.mark.parametrize("returned", [np.ma.masked, np.ma.masked_array([1.0, 2.0], mask=[True, False])[0]])
def test_what_is_masked_is_skipped(returned: Any) -> None:
    assert one(Given(), [sample(), sample(returned)]).status[:, 0].tolist() == [OK, SKIPPED]


@pytest.mark.parametrize("limits", [None, (0.0,), ("0", "1")])
def test_limits_that_are_none_fail_the_samples(limits: Any) -> None:
    class Limited(Given):
        def limits(self) -> Any:
            return limits

    assert one(Limited(), [sample(), sample()]).status[:, 0].tolist() == [FAILED, FAILED]


def test_a_word_that_a_reward_leaves_for_itself_is_no_obstacle() -> None:
    asked = sample(Graded(1.0, "read"))
    asked.meta["graded"] = 3
    assert one(Given(), [asked]).values.tolist() == [[1.0]] and asked.meta["graded"] == {"x": "read"}


def test_a_graded_score_can_be_copied() -> None:
    again = pickle.loads(pickle.dumps(Graded(0.5, "read")))
    assert (again, again.how) == (0.5, "read")


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (NAN, "returned nan on sample 1 of prompt 'p'; expected a finite number"),
        (float("inf"), "returned inf on sample 1"),
        (10**400, "returned inf on sample 1"),
        ("good", "returned 'good' (str) on sample 1 of prompt 'p'; expected a number, or None"),
        ([1.0], "returned [1.0] (list) on sample 1"),
        (1j, "(complex)"),
        (torch.tensor(NAN), "returned nan on sample 1"),
    ],
)
def test_what_is_no_number_fails(returned: Any, message: str) -> None:
    scores = one(Given(), [sample(), sample(returned), sample()])
    assert scores.status[:, 0].tolist() == [OK, FAILED, OK]
    assert message in scores.messages[0]


@pytest.mark.parametrize(
    "returned", [2, True, np.float32(2), np.bool_(True), np.int64(2), torch.tensor(2.0), np.array(2.0), 2.0]
)
def test_what_is_a_number_counts(returned: Any) -> None:
    scores = one(Given(), [sample(returned)])
    assert scores.values.tolist() == [[float(returned)]]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0, 2.0], "reward 'x' returned 2 scores for 3 samples"),
        ([], "returned 0 scores for 3 samples"),
        (None, "returned a NoneType; expected a list"),
        ("abc", "returned a str"),
        (1.0, "returned a float"),
        (np.zeros((3, 1)), "returned a ndarray"),
    ],
)
def test_a_wrong_container_fails_all_samples(returned: Any, message: str) -> None:
    scores = one(Custom(act=lambda samples: returned), [sample(), sample(), sample()])
    assert (scores.status == FAILED).all()
    assert message in scores.messages[0]


@pytest.mark.parametrize("returned", [(1.0, 2.0), np.array([1, 2]), torch.tensor([1.0, 2.0])])
def test_containers_of_numbers_are_accepted(returned: Any) -> None:
    assert one(Custom(act=lambda samples: returned), [sample(), sample()]).values.ravel().tolist() == [1.0, 2.0]


def test_none_skips_and_is_no_failure() -> None:
    scores = one(Given(), [sample(None), sample(3)])
    assert scores.status.ravel().tolist() == [SKIPPED, OK] and not scores.messages


def test_a_sample_that_lacks_what_is_needed_is_skipped_and_never_scored() -> None:
    class Needy(Reward):
        needs = ("image", "target")

        def score(self, samples: Sequence[Sample]) -> list[float | None]:
            return [float(len(s.images)) for s in samples]

    image = np.zeros((2, 2, 3), dtype=np.uint8)
    full = Sample(Prompt("a", "a", target={}), images=(image,))
    scores = one(Needy(), [full, Sample(Prompt("a", "a", target={})), Sample(Prompt("a", "a"), images=(image,))])
    assert scores.status.ravel().tolist() == [OK, SKIPPED, SKIPPED]


def test_a_score_outside_the_declared_range_fails() -> None:
    class Bounded(Given):
        range = (0.0, 1.0)

    scores = one(Bounded(), [sample(1.0), sample(-4.0), sample(1.0 + 1e-9)])
    assert scores.status.ravel().tolist() == [OK, FAILED, OK]
    assert "returned -4 on sample 1 of prompt 'p'; it declares the range 0.0 to 1.0" in scores.messages[0]


def test_no_samples_no_scores() -> None:
    assert one(Given(), []).values.shape == (0, 1)


def totals(
    columns: dict[str, list[Any]], weights: dict[str, float], group: list[int], held_out: Sequence[str] = ()
) -> Any:
    rewards = RewardSet({name: (Given(key=name), weights[name]) for name in columns}, held_out)
    samples = [
        Sample(Prompt("p", "p"), meta=dict(zip(columns, row, strict=True)))
        for row in zip(*columns.values(), strict=True)
    ]
    return rewards.total(rewards.score(samples), torch.tensor(group))


def test_total_is_the_weighted_sum_in_float64() -> None:
    total = totals({"a": [1, 2], "b": [10, 20]}, {"a": 0.5, "b": -2.0}, [0, 0])
    assert total.dtype == np.float64 and total.tolist() == [-19.5, -39.0]


def test_a_failure_makes_the_total_nan_and_never_0() -> None:
    assert np.isnan(totals({"a": [1, NAN], "b": [1, 1]}, {"a": 1, "b": 1}, [0, 0])).tolist() == [False, True]


def test_a_reward_that_skipped_a_whole_group_is_left_out_of_it() -> None:
    total = totals({"a": [1, 2, 3, 4], "b": [None, None, 1, None]}, {"a": 1, "b": 1}, [0, 0, 1, 1])
    assert total[:3].tolist() == [1.0, 2.0, 4.0] and np.isnan(total[3])


def test_a_group_with_skips_and_failures_is_unscored() -> None:
    assert np.isnan(totals({"a": [1, 2], "b": [None, NAN]}, {"a": 1, "b": 1}, [0, 0])).all()


def test_a_group_without_any_reward_is_nan_and_never_0() -> None:
    assert np.isnan(totals({"a": [None, None]}, {"a": 1}, [0, 0])).all()


def test_held_out_rewards_and_weight_0_never_reach_the_total() -> None:
    total = totals({"a": [1, 2], "b": [NAN, 50], "c": [NAN, 9]}, {"a": 1, "b": 1, "c": 0}, [0, 0], held_out=["b"])
    assert total.tolist() == [1.0, 2.0]


def test_sets_that_cannot_mean_anything_are_refused() -> None:
    class Lower(Given):
        higher_is_better = False

    with pytest.raises(UserError, match="weight nan"):
        RewardSet({"x": (Given(), NAN)})
    with pytest.raises(UserError, match="held-out reward 'y'"):
        RewardSet({"x": (Given(), 1.0)}, held_out=["y"])
    with pytest.raises(UserError, match="teach the opposite; set the weight to -2"):
        RewardSet({"x": (Lower(), 2.0)}).check_trained()
    RewardSet({"x": (Lower(), -2.0)}).check_trained()
    with pytest.raises(UserError, match="no reward is trained on"):
        RewardSet({"x": (Given(), 1.0)}, held_out=["x"]).check_trained()


def test_budget_bears_a_rare_failure_and_stops_a_steady_one() -> None:
    budget = FailureBudget(share=0.05, window=20)
    for step in range(200):
        budget.add(failed=1 if step % 2 else 0, total=16)
    with pytest.raises(RunError, match=r"more than the budget of 0\.05"):
        for _ in range(3):
            budget.add(failed=16, total=16)
    first = FailureBudget(share=0.05, window=20)
    first.add(failed=16, total=16)
    with pytest.raises(RunError, match="failed on 32 of 32 samples in 2 steps"):
        first.add(failed=16, total=16)


def test_budget_of_0_stops_at_the_first_failure_and_1_never() -> None:
    strict, loose = FailureBudget(0.0, 5), FailureBudget(1.0, 5)
    strict.add(0, 8)
    with pytest.raises(RunError):
        strict.add(1, 8)
    for _ in range(20):
        loose.add(8, 8)


def test_budget_forgets_what_left_the_window() -> None:
    budget = FailureBudget(share=0.25, window=4)
    for _ in range(10):
        budget.add(4, 4)
        for _ in range(3):
            budget.add(0, 4)


def test_budget_names_the_most_frequent_cause_in_one_line() -> None:
    samples = [sample(ValueError("timeout"), prompt=f"it's {i}") for i in range(3)] + [sample(NAN)]
    scores = one(Given(), samples)
    with pytest.raises(RunError) as caught:
        FailureBudget(0.0, 5).add(int((scores.status == FAILED).sum()), len(samples), scores.messages)
    assert "failed on 4 of 4 samples" in str(caught.value)
    assert "most often (3 times): reward 'x' raised ValueError: timeout (" in str(caught.value)
    assert "\n" not in str(caught.value) and str(caught.value).endswith("then go on with --resume")


def test_budget_state_survives_json() -> None:
    budget, other = FailureBudget(0.5, 3), FailureBudget(0.5, 3)
    for failed in (1, 2, 0, 3):
        budget.add(failed, 4, ["why"] * failed)
    other.load_state(json.loads(json.dumps(budget.state())))
    assert other == budget and len(other.steps) == 3


def test_budget_settings_are_checked() -> None:
    with pytest.raises(UserError, match=r"share in 0\.\.1"):
        FailureBudget(share=5, window=1)


def test_a_reward_can_say_which_samples_failed() -> None:
    class Half(Reward):
        def score(self, samples: Sequence[Sample]) -> list[Any]:
            return [1.0 if row % 2 else Failed("the server was down") for row in range(len(samples))]

    scores = RewardSet({"half": (Half(), 1.0)}).score([Sample(Prompt("a", "")) for _ in range(2)])
    assert scores.status[:, 0].tolist() == [FAILED, OK] and np.isnan(scores.values[0, 0])
    assert scores.messages == ["reward 'half': the server was down on sample 0 of prompt 'a'"]


def test_parts_of_a_score_are_kept_under_the_names_of_their_rewards() -> None:
    class Parted(Given):
        part: Any = 0.5

        def score(self, samples: Sequence[Sample]) -> list[Any]:
            for row, one in enumerate(samples):
                one.meta["components"] = {"half": self.part if row else 0.25}
            return [one.meta[self.key] for one in samples]

    samples = [Sample(Prompt("p", ""), meta={"x": value}) for value in (1.0, 2.0, None)]
    rewards = RewardSet(
        {"a": (Parted(key="x"), 1.0), "b": (Given(key="x"), 1.0), "c": (Parted(key="x", part=NAN), 1.0)}
    )
    scores = rewards.score(samples)
    assert scores.status.T.tolist() == [[OK, OK, SKIPPED], [OK, OK, SKIPPED], [OK, FAILED, SKIPPED]]
    assert samples[0].meta["components"] == {"a": {"half": 0.25}, "c": {"half": 0.25}}
    assert samples[1].meta["components"] == {"a": {"half": 0.5}} and "components" not in samples[2].meta
    assert "reward 'c' left in meta['components'] 'half': nan" in scores.messages[0]
    rewards.score(samples[:1])
    assert samples[0].meta["components"] == {"a": {"half": 0.25}, "c": {"half": 0.25}}
