"""What a step draws depends on its index and on nothing else."""

from __future__ import annotations

import itertools
import json

import pytest

from mmrl.errors import UserError
from mmrl.rollout import Draw, Prompt
from mmrl.sampler import GroupIterator, GroupSampler
from mmrl.seeding import derive_seed, permutation


def prompts(count: int) -> list[Prompt]:
    return [Prompt(id=f"p{i}", text="the same text") for i in range(count)]


def sampler(count: int = 10, step: int = 4, group: int = 3, seed: int = 1, stage: str = "rl") -> GroupSampler:
    return GroupSampler(prompts(count), step, group, seed, stage)


def ids(draws: list[Draw]) -> list[str]:
    return [draw.prompt.id for draw in draws if draw.member == 0]


def test_groups_follow_each_other_and_every_member_has_a_seed_of_its_own() -> None:
    draws = sampler().draws(7)
    assert [(draw.group, draw.member) for draw in draws] == list(itertools.product(range(4), range(3)))
    assert len({draw.seed for draw in draws}) == 12
    assert len({draw.group_seed for draw in draws}) == 4
    assert all(draw.prompt is draws[draw.group * 3].prompt for draw in draws)


def test_equal_texts_with_different_ids_are_different_prompts() -> None:
    assert len(set(ids(sampler(count=4).draws(0)))) == 4


@pytest.mark.parametrize(("count", "step"), [(12, 4), (10, 4), (7, 4), (5, 5), (7, 6), (9, 8), (1, 1), (100, 7)])
def test_every_epoch_holds_every_prompt_once_and_no_step_holds_one_twice(count: int, step: int) -> None:
    own = sampler(count, step, 1)
    steps = [ids(own.draws(index)) for index in range(4 * count)]
    assert all(len(set(drawn)) == step for drawn in steps)
    stream = list(itertools.chain.from_iterable(steps))
    epochs = [stream[start : start + count] for start in range(0, len(stream), count)]
    assert all(sorted(epoch) == sorted(p.id for p in own.prompts) for epoch in epochs)
    assert count < 7 or epochs[0] != epochs[1]


@pytest.mark.parametrize(("count", "step"), [(10, 4), (7, 6), (9, 8)])
def test_order_of_asking_does_not_matter(count: int, step: int) -> None:
    forward = [sampler(count, step).draws(index) for index in range(30)]
    shared = sampler(count, step)
    assert [shared.draws(index) for index in reversed(range(30))] == forward[::-1]
    assert [sampler(count, step).draws(index) for index in range(30)] == forward


def test_a_loop_that_looks_ahead_gets_the_same_draws() -> None:
    own = sampler()
    plain = [own.draws(index) for index in range(20)]
    ahead = []
    for index in range(20):
        own.draws(index + 5)
        ahead.append(own.draws(index))
    assert ahead == plain


def test_resuming_equals_not_stopping() -> None:
    whole = iter(sampler())
    expected = [next(whole) for _ in range(15)]
    first = iter(sampler())
    drawn = [next(first) for _ in range(6)]
    state = json.loads(json.dumps(first.state()))
    assert state == {"index": 6}
    second = GroupIterator(sampler())
    second.load_state(state)
    assert drawn + [next(second) for _ in range(9)] == expected


def test_seed_and_stage_change_order_and_noise() -> None:
    base = sampler(count=50)
    for other in (sampler(count=50, seed=2), sampler(count=50, stage="rl2")):
        assert ids(other.draws(0)) != ids(base.draws(0))
        assert not {draw.seed for draw in other.draws(0)} & {draw.seed for draw in base.draws(0)}


def test_a_step_that_cannot_be_filled_is_refused_with_valid_settings() -> None:
    with pytest.raises(UserError, match=r"prompts_per_step is 4, but there are only 3 prompts.*set it to 3 or less"):
        sampler(count=3)
    with pytest.raises(UserError, match="no prompts"):
        sampler(count=0)
    with pytest.raises(UserError, match=r"group_size \(0\)"):
        sampler(group=0)
    with pytest.raises(UserError, match="prompts 1 and 3 have the same id 'p0'"):
        GroupSampler([*prompts(2), Prompt(id="p0", text="other")], 1, 1)


def test_seeds_are_pinned() -> None:
    """A change here changes every run: it must be meant."""
    assert derive_seed("sample", 0, "rl", 0, 0, 0) == 7971945138603792011
    assert 0 <= derive_seed() < 2**63
    assert derive_seed(1) != derive_seed("1") != derive_seed(1, "")
    assert sorted(permutation(9, "a")) == list(range(9))
    with pytest.raises(TypeError):
        derive_seed(0.5)  # type: ignore[arg-type]
