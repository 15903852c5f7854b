"""Group and pairwise rewards: win rates, orders, ties, budgets, caches, failures; whole groups on every process."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import PrivateAttr

from mmrl.data.shapes.captions import parse, sample_scene
from mmrl.data.shapes.draw import render
from mmrl.data.shapes.reward import ShapePairs
from mmrl.distributed import slice_of_groups
from mmrl.errors import UserError
from mmrl.reward import Failed, Reward, RewardSet, Scope
from mmrl.reward.pairwise import PairwiseReward, Verdict, pairs_of
from mmrl.rewards.judge.pairs import PairJudge
from mmrl.rewards.judge.verdict import answered_winner
from mmrl.rollout import FAILED, OK, Prompt, Sample
from tests.unit.judge_server import JudgeServer, Serve, user_text

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "data" / "prefgrpo__win_rate_think.json").read_text())


def samples(*values: Any, prompt: str = "p") -> list[Sample]:
    return [Sample(Prompt(prompt, "x"), text=str(value), meta={"value": value}) for value in values]


class Larger(PairwiseReward):
    """The larger value is the better; `bias` is how much the first place is worth; a value of None has no verdict."""

    bias: float = 0.0
    _asked: list[Any] = PrivateAttr(default_factory=list)

    def compare(self, pairs: Sequence[tuple[Sample, Sample]]) -> list[Verdict]:
        found: list[Verdict] = []
        for first, second in pairs:
            a, b = first.meta["value"], second.meta["value"]
            self._asked.append((a, b))
            if a is None or b is None:
                found.append(Failed("no value"))
            else:
                a += self.bias
                found.append(0.5 if a == b else float(a > b))
        return found


def naive(values: list[float]) -> list[float]:
    found = []
    for i, a in enumerate(values):
        wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for j, b in enumerate(values) if j != i)
        found.append(wins / (len(values) - 1))
    return found


@given(st.lists(st.integers(0, 4), min_size=2, max_size=7))
def test_win_rates_are_those_of_a_loop(values: list[int]) -> None:
    for orders in ("both", "one"):
        found = Larger(orders=orders).score(samples(*values))  # type: ignore[arg-type]
        np.testing.assert_allclose(found, naive([float(v) for v in values]))
    assert sum(found) == pytest.approx(len(values) / 2)


@given(st.permutations(range(5)))
def test_the_order_of_a_group_does_not_matter(order: list[int]) -> None:
    whole = Larger(bias=1.0).score(samples(*range(5)))
    np.testing.assert_allclose(Larger(bias=1.0).score(samples(*order)), [whole[k] for k in order])


def test_a_liking_for_the_first_place_cancels_in_both_orders() -> None:
    assert Larger(bias=10.0, orders="one").score(samples(1, 2, 3)) == [1.0, 0.5, 0.0]  # only the place counts
    assert Larger(bias=10.0).score(samples(1, 2, 3)) == [0.5, 0.5, 0.5]
    assert Larger(bias=1.5).score(samples(1, 2, 5)) == [0.25, 0.25, 1.0]


def test_pairs_without_a_verdict_are_left_out_and_no_number() -> None:
    reward = Larger()
    found = reward.score(samples(1, None, 3))
    assert found[0] == 0.0 and found[2] == 1.0 and isinstance(found[1], Failed)
    scores = RewardSet({"w": (reward, 1.0)}).score(samples(1, None, 3), [0, 0, 0])
    assert scores.status[:, 0].tolist() == [OK, FAILED, OK] and "no value" in scores.messages[0]
    half = Larger(unreadable="half").score(samples(1, None, 3))
    assert half[0] == 0.0 and half[2] == 1.0 and isinstance(half[1], Failed)  # a comparison that failed is no tie


class Shy(Larger):
    """Says nothing about a pair with a value of None, and breaks at one of -1."""

    def compare(self, pairs: Sequence[tuple[Sample, Sample]]) -> list[Verdict]:
        if any(-1 in (first.meta["value"], second.meta["value"]) for first, second in pairs):
            raise ConnectionError("gone")
        quiet = [None in (first.meta["value"], second.meta["value"]) for first, second in pairs]
        return [None if none else super(Shy, self).compare([pair])[0] for none, pair in zip(quiet, pairs, strict=True)]


def test_an_answer_without_a_verdict_may_be_a_tie_but_an_exception_never() -> None:
    assert Shy(unreadable="half").score(samples(1, None, 3)) == [0.25, 0.5, 0.75]
    found = Shy(unreadable="half").score(samples(1, -1, 3))
    assert found[0] == 0.0 and found[2] == 1.0 and isinstance(found[1], Failed) and "gone" in found[1].reason


def test_the_original_win_rate() -> None:
    replies = {(one["first_index"], one["second_index"]): one["model_output"] for one in GOLDEN["inputs"]["responses"]}

    class Think(PairwiseReward):
        def compare(self, pairs: Sequence[tuple[Sample, Sample]]) -> list[Verdict]:
            found: list[Verdict] = []
            for first, second in pairs:
                who = answered_winner(replies[first.meta["value"], second.meta["value"]])
                found.append(None if who is None else {1: 1.0, 2: 0.0, 0: 0.5}[who])
            return found

    wanted = GOLDEN["outputs"]["win_rate"]["data"]
    found = Think(orders="one", unreadable="half").score(samples(0, 1, 2, 3))
    assert [round(value, 3) for value in found] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(("count", "most"), [(8, 8), (8, 16), (8, 20), (5, 7), (9, 30), (4, 100)])
def test_a_budget_is_kept_evenly_and_links_everybody(count: int, most: int) -> None:
    pairs = pairs_of(count, most, "p")
    assert len(pairs) <= most and len(set(pairs)) == len(pairs) and all(i < j for i, j in pairs)
    played = Counter(k for pair in pairs for k in pair)
    assert len(set(played.values())) == 1 and len(played) == count
    linked, todo = {0}, [0]
    while todo:
        one = todo.pop()
        new = {b if a == one else a for a, b in pairs if one in (a, b)} - linked
        linked |= new
        todo += new
    assert len(linked) == count
    assert pairs == pairs_of(count, most, "p")


def test_too_small_a_budget_is_refused() -> None:
    scores = RewardSet({"w": (Larger(max_pairs=3), 1.0)}).score(samples(1, 2, 3, 4), [0] * 4)
    assert (scores.status == FAILED).all() and "use 4 or more" in scores.messages[0]
    scores = RewardSet({"w": (Larger(), 1.0)}).score(samples(1), [0])
    assert (scores.status == FAILED).all() and "two samples" in scores.messages[0]


def test_verdicts_are_kept_by_what_was_shown(tmp_path: Path) -> None:
    reward = Larger(cache=str(tmp_path))
    reward.score(samples(1, 2))
    assert reward._asked == [(1, 2), (2, 1)]
    reward.score(samples(1, 2))
    reward.score(samples(2, 1))
    assert len(reward._asked) == 2
    again = Larger(cache=str(tmp_path))
    assert again.score(samples(1, 2)) == [0.0, 1.0] and not again._asked
    other = Larger(cache=str(tmp_path), bias=1.0)
    other.score(samples(1, 2))
    assert len(other._asked) == 2  # other options are another judge
    again.score(samples(1, 2, prompt="q"))
    assert not again._asked  # the text of the prompt counts, not its id


class Spread(Reward):
    """How far a value is from the mean of its group."""

    scope: ClassVar[Scope] = "groupwise"

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        values = [sample.meta["value"] for sample in samples]
        if None in values:
            raise ValueError("a value is missing")
        return [float(value - np.mean(values)) for value in values]


def test_groupwise_rewards_see_one_whole_group_at_a_time() -> None:
    rewards = RewardSet({"s": (Spread(), 1.0)})
    given_, group = samples(1, 10, 3, 20), [5, 2, 5, 2]
    assert rewards.score(given_, group).values[:, 0].tolist() == [-1.0, -5.0, 1.0, 5.0]
    with pytest.raises(UserError, match="what the groups are"):
        rewards.score(given_)
    broken = rewards.score(samples(1, None, 3, 4), [0, 0, 1, 1])
    assert broken.status[:, 0].tolist() == [FAILED, FAILED, OK, OK] and len(broken.messages) == 2


@given(st.lists(st.integers(1, 5), min_size=1, max_size=9), st.integers(1, 5))
def test_no_group_is_cut_between_processes(sizes: list[int], world: int) -> None:
    group = [g for g, size in enumerate(sizes) for _ in range(size)]
    parts = [group[slice_of_groups(group, rank, world)] for rank in range(world)]
    assert [g for part in parts for g in part] == group
    for a in range(world):
        for b in range(a):
            assert not set(parts[a]) & set(parts[b])


def test_the_embedded_judge_prefers_what_the_verifier_credits() -> None:
    right, other = parse("one red circle"), parse("two blue squares")
    prompt = Prompt("p", "one red circle", target=right)
    rng = np.random.default_rng(0)
    pictures = [render(sample_scene(target, rng)) for target in (right, other, right)]
    found = ShapePairs().score([Sample(prompt, images=(one,)) for one in pictures])
    assert found == [0.75, 0.0, 0.75]


def place_of(body: dict[str, Any], word: str) -> int:
    """Which candidate's text holds `word`, 1 or 2."""
    first, second = user_text(body).split("Candidate 2:")
    assert (word in first) != (word in second)
    return 1 if word in first else 2


def judge(server: JudgeServer, **options: Any) -> PairJudge:
    reward = PairJudge(endpoint={"url": server.url, "model": "judge", "backoff": 0.01}, **options)  # type: ignore[arg-type]
    reward.setup(torch.device("cpu"))
    return reward


def test_a_judge_that_always_says_first_says_nothing(serve: Serve) -> None:
    server = serve(lambda body: '{"reason": "", "winner": "1"}')
    assert judge(server).score(samples("a", "b", "c")) == [0.5, 0.5, 0.5]
    assert len(server.bodies) == 6


@pytest.mark.parametrize(
    ("form", "reply"),
    [
        ("schema", '{{"reason": "x", "winner": "{0}"}}'),
        ("think", "<think>Image 2?</think><answer>Image {0} is better</answer>"),
        ("flex", '{{"categories": [{{"name": "a", "cat_winner": "Image {0}"}}], "winner": "Image {0}"}}'),
    ],
)
def test_forms_of_judges(serve: Serve, form: Any, reply: str) -> None:
    server = serve(lambda body: reply.format(place_of(body, "good")))
    assert judge(server, form=form).score(samples("good", "bad")) == [1.0, 0.0]


def test_categories_count_beside_the_winner(serve: Serve) -> None:
    def answer(body: dict[str, Any]) -> str:
        mine = place_of(body, "good")
        categories = [{"name": str(k), "cat_winner": f"Image {mine if k else 3 - mine}"} for k in range(4)]
        return json.dumps({"categories": categories, "winner": f"Image {mine}"})

    assert judge(serve(answer), form="flex").score(samples("good", "bad"))[0] == pytest.approx(0.5 + 0.5 * 0.75)


def test_unreadable_pairs_of_a_judge_fail(serve: Serve) -> None:
    scores = RewardSet({"j": (judge(serve(lambda body: "hm")), 1.0)}).score(samples("a", "b"), [0, 0])
    assert (scores.status == FAILED).all() and "no verdict" in scores.messages[0]
    assert isinstance(judge(serve(lambda body: 400)).score(samples("a", "b"))[0], Failed)


class Told(PairwiseReward):
    """The earlier letter is the better; "c" cannot be compared, and shown second an "a" is not understood."""

    def compare(self, pairs: Sequence[tuple[Sample, Sample]]) -> list[Verdict]:
        if any("c" in (first.text, second.text) for first, second in pairs):
            raise ValueError("no c, please")
        return [None if second.text == "a" else float(str(first.text) < str(second.text)) for first, second in pairs]


def test_a_pair_that_raises_costs_no_other_pair() -> None:
    scores = RewardSet({"w": (Told(), 1.0)}).score(samples("b", "c", "d"), [0, 0, 0])
    assert scores.status[:, 0].tolist() == [OK, FAILED, OK] and scores.values[[0, 2], 0].tolist() == [1.0, 0.0]
    assert "ValueError: no c, please" in scores.messages[0]


class Says(PairwiseReward):
    """Returns what it is told."""

    _told: Any = PrivateAttr()

    def compare(self, pairs: Sequence[tuple[Sample, Sample]]) -> Any:
        if isinstance(self._told, BaseException):
            raise self._told
        return self._told


@pytest.mark.parametrize("told", ["1", {1: 0.5}, ["1"], [math.nan], [1.5], [1, 1], SystemExit(0)])
def test_what_are_no_verdicts_is_a_failure(told: Any) -> None:
    reward = Says(orders="one")
    reward._told = told
    scores = RewardSet({"x": (reward, 1.0)}).score(samples(1, 2), [0, 0])
    assert scores.status[:, 0].tolist() == [FAILED, FAILED]
    assert "none of its comparisons has a verdict (compare raised" in scores.messages[0]


def test_a_pair_that_is_readable_in_one_order_alone_is_left_out() -> None:
    found = Told().score(samples("a", "b", "d"))
    assert isinstance(found[0], Failed) and found[1:] == [1.0, 0.0]
    assert Told(unreadable="half").score(samples("a", "b", "d")) == [0.5, 0.75, 0.25]
    assert Told(orders="one").score(samples("a", "b", "d")) == [1.0, 0.5, 0.0]


def test_what_a_prompt_asks_for_is_part_of_the_question() -> None:
    reward = Larger()
    for target in (1, 1, 2):
        reward.score([Sample(Prompt("p", "x", target=target), text=str(k), meta={"value": k}) for k in range(2)])
    assert len(reward._asked) == 4
