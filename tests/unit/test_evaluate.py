"""Held-out numbers: by kind and level, without looking, and what guessing is worth; and the samples for the eye."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmrl.components import build
from mmrl.data.puzzles.puzzle import PuzzleMaker
from mmrl.data.puzzles.source import PuzzlePrompts
from mmrl.distributed import Group
from mmrl.evaluate import chance, evaluate, evaluation_draws, picture_of
from mmrl.reward import Reward, RewardSet, Use
from mmrl.rollout import Draw, Prompt, Sample
from mmrl.trainer import Trainer


class Says:
    """A policy that answers with the right answer when it looks, and always "1" through the blank view."""

    blind_view: str | None = "blank"

    def generate(self, draws: Sequence[Draw], plan: Any, view: str = "original") -> list[Sample]:
        return [Sample(d.prompt, text="1" if view == "blank" else d.prompt.meta["says"]) for d in draws]


class Equal(Reward):
    needs = ("text", "target")

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        return [float(sample.text == sample.prompt.target) for sample in samples]


GREY = np.full((4, 4, 3), 90, dtype=np.uint8)


def prompt(number: int, kind: str, level: int, target: str, says: str, media: bool = True, **meta: Any) -> Prompt:
    found = {"kind": kind, "level": level, "says": says, **meta}
    return Prompt(f"p{number}", "?", (GREY,) if media else (), target, found)


PROMPTS = [
    prompt(0, "count", 1, "1", "1", guesses=["1", "2"]),
    prompt(1, "count", 1, "2", "3", guesses=["1", "2", "3", "4"]),
    prompt(2, "count", 2, "2", "2", guesses=["2"]),
    prompt(3, "maze", 2, "L", "L", media=False),
]


@pytest.fixture
def group() -> Any:
    made = Group("cpu")
    yield made
    made.close()


def rewards() -> RewardSet:
    return RewardSet({"exact": (Equal(), 1.0)})


def test_by_keys_and_by_combinations_of_keys(group: Group) -> None:
    by = ("kind", ("kind", "level"))
    found = evaluate(Says(), None, evaluation_draws(PROMPTS, 1, 0), rewards(), 0, 2, group, by).metrics
    assert found == {
        "exact": 0.75, "exact/kind=count": pytest.approx(2 / 3), "exact/kind=maze": 1.0,
        "exact/kind=count,level=1": 0.5, "exact/kind=count,level=2": 1.0, "exact/kind=maze,level=2": 1.0,
    }  # fmt: skip


def test_blind_is_asked_of_every_part_that_has_media(group: Group) -> None:
    found = evaluate(Says(), None, evaluation_draws(PROMPTS, 1, 0), rewards(), 0, 2, group, ("kind",), True).metrics
    blind = {name: value for name, value in found.items() if name.endswith("/blind")}
    assert blind == {"exact/blind": pytest.approx(1 / 3), "exact/kind=count/blind": pytest.approx(1 / 3)}
    assert found["exact/media"] == pytest.approx(2 / 3)


def test_blind_is_compared_with_prompts_that_have_media(group: Group) -> None:
    """Per part too, wherever some of its prompts have none; the part without any has nothing to compare."""
    mixed = [*PROMPTS, prompt(4, "count", 1, "5", "5", media=False), prompt(5, "sums", 1, "1", "1")]
    draws = evaluation_draws(mixed, 1, 0)
    found = evaluate(Says(), None, draws, rewards(), 0, 2, group, ("kind", ("kind", "level")), True).metrics
    assert {name: value for name, value in found.items() if name.endswith("/media")} == {
        "exact/media": pytest.approx(3 / 4),
        "exact/kind=count/media": pytest.approx(2 / 3),
        "exact/kind=count,level=1/media": pytest.approx(1 / 2),
    }


def test_chance_is_what_the_guesses_earn(group: Group) -> None:
    """A prompt counts once, however many guesses it has; left out wherever one of the prompts has none."""
    found = chance(PROMPTS, rewards(), group, ("kind", ("kind", "level")))
    assert found == {
        "exact/kind=count/chance": pytest.approx((1 / 2 + 1 / 4 + 1) / 3),
        "exact/kind=count,level=1/chance": pytest.approx((1 / 2 + 1 / 4) / 2),
        "exact/kind=count,level=2/chance": 1.0,
    }
    assert chance(PROMPTS[:3], rewards(), group)["exact/chance"] == pytest.approx(7 / 12)
    assert chance([], rewards(), group) == {} and chance(PROMPTS[3:], rewards(), group) == {}


def test_guesses_without_a_score_are_counted(group: Group) -> None:
    class Fails(Equal):
        def score(self, samples: Sequence[Sample]) -> list[float | None]:
            return [float("nan") if one.text in ("2", "4") else float(one.text == "1") for one in samples]

    found = chance(PROMPTS[:3], RewardSet({"exact": Use(Fails())}), group)
    assert found == {"exact/chance": pytest.approx((1 + 1 / 2) / 2), "exact/chance/failed": 4.0}


def test_guesses_are_no_group_to_be_compared(group: Group) -> None:
    class Best(Equal):
        scope = "groupwise"

    pairs = {"exact": Use(Equal()), "best": Use(Best())}
    run: Any = SimpleNamespace(
        config=SimpleNamespace(evaluation=SimpleNamespace(by=())), chances={}, group=group,
        _held_out=lambda: PROMPTS[:3], _rewards=lambda stage: pairs,
    )  # fmt: skip
    stage: Any = SimpleNamespace(name="rl")
    assert Trainer._chance(run, stage) == {"exact/chance": pytest.approx(7 / 12)}


def test_a_reward_of_groups_sees_the_samples_of_a_prompt(group: Group) -> None:
    class Longest(Reward):
        scope = "groupwise"

        def score(self, samples: Sequence[Sample]) -> list[float]:
            assert len(samples) == 2 and len({one.prompt.id for one in samples}) == 1
            return [float(one is samples[1]) for one in samples]

    found = evaluate(
        Says(), None, evaluation_draws(PROMPTS, 2, 0), RewardSet({"longest": (Longest(), 1.0)}), 0, 3, group, blind=True
    ).metrics
    assert found == {"longest": 0.5, "longest/media": 0.5, "longest/blind": 0.5}


@pytest.mark.parametrize("kind", ["count_shapes", "locate", "rotation", "relation"])
def test_guesses_of_puzzles_earn_the_stated_chance(group: Group, kind: str) -> None:
    """By the partial reward it is the puzzle's own table; by the exact one it is lower."""
    source = PuzzlePrompts.model_validate({"mixture": [{"kind": kind, "level": 2, "size": 56}], "number": 60})
    judges = RewardSet(
        {mode: (build("reward", {"name": "puzzle", "mode": mode}), 1.0) for mode in ("partial", "exact")}
    )
    prompts = source.load("all")
    found = chance(prompts, judges, group, ("kind",))
    maker: PuzzleMaker = source.mixture[0].maker
    assert found["partial/chance"] == pytest.approx(maker.chance[2], abs=0.08)
    assert found[f"partial/kind={kind}/chance"] == found["partial/chance"]
    assert found["exact/chance"] < found["partial/chance"] and found["exact/chance"] == pytest.approx(0.22, abs=0.09)
    again = PuzzlePrompts.model_validate({"mixture": [{"kind": kind, "level": 2, "size": 56}], "number": 60}).load(
        "all"
    )
    assert [one.meta["guesses"] for one in again] == [one.meta["guesses"] for one in prompts]


def test_a_sample_for_the_eye_has_its_media_its_answer_and_its_kind() -> None:
    video = np.repeat(np.arange(12, dtype=np.uint8), 400 * 300 * 3).reshape(12, 300, 400, 3)
    shown = picture_of(Sample(Prompt("v", "?", (GREY, video, GREY), {"answer": 3}, {"kind": "k", "level": 2, "fps": 4.0}),
                              text="3"), {"exact": 1.0})  # fmt: skip
    assert [len(row) for row in shown.media] == [1, 4, 1] and shown.media[1][-1].label == "2.75 s"
    assert shown.media[1][0].image.size == (256, 192) and shown.media[0][0].image.size == (4, 4)
    assert (shown.answer, shown.about, shown.text) == ("3", "k · level 2", "3")
    plain = picture_of(Sample(Prompt("t", "?", target={"regions": []}), text="x"), {})
    assert (plain.answer, plain.about, list(plain.media)) == (None, "", [])
