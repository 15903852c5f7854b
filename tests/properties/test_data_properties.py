"""Laws of the sampler and of splits, for any size."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.components import build
from mmrl.rollout import Prompt
from mmrl.sampler import GroupSampler
from mmrl.seeding import derive_seed

sizes = st.integers(1, 40).flatmap(lambda count: st.tuples(st.just(count), st.integers(1, count)))


def sampler(count: int, step: int, group: int = 1, seed: int = 0) -> GroupSampler:
    return GroupSampler([Prompt(id=str(i), text="t") for i in range(count)], step, group, seed, "rl")


@settings(deadline=None)
@given(sizes, st.integers(0, 2**31), st.integers(0, 60))
def test_no_repeats_within_a_step_or_an_epoch_and_any_index_alone_gives_the_same(
    size: tuple[int, int], seed: int, at: int
) -> None:
    count, step = size
    walked = sampler(count, step, seed=seed)
    steps = [[int(prompt.id) for prompt in walked.prompts_of(index)] for index in range(at + 1)]
    assert all(len(set(drawn)) == step for drawn in steps)
    stream = list(itertools.chain.from_iterable(steps))
    for start in range(0, len(stream), count):
        epoch = stream[start : start + count]
        assert len(set(epoch)) == len(epoch)
    assert [int(prompt.id) for prompt in sampler(count, step, seed=seed).prompts_of(at)] == steps[at]


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcdefghijklmn"), min_size=1, max_size=60), st.integers(0, 9), st.floats(0.01, 0.6))
def test_parts_are_disjoint_by_text_and_complete(texts: list[str], seed: int, held_out: float) -> None:
    if len(set(texts)) < 4:
        return
    split = {"held_out": held_out, "validation": 0.1, "seed": seed}
    source = build("prompts", {"name": "list", "items": texts, "split": split})
    parts = {part: source.load(part) for part in ("train", "validation", "held_out")}
    assert sorted(p.id for part in parts.values() for p in part) == sorted(p.id for p in source.load())
    groups = [{p.text for p in part} for part in parts.values()]
    assert sum(len(group) for group in groups) == len(set(texts))
    assert len(groups[2]) == max(1, round(held_out * len(set(texts))))


parts_of_seeds = st.lists(st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=5)), max_size=4).map(tuple)


@given(st.lists(parts_of_seeds, unique_by=lambda parts: tuple((type(p), p) for p in parts)))
def test_different_parts_give_different_seeds(keys: list[tuple[int | str, ...]]) -> None:
    seeds = [derive_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys) and all(0 <= seed < 2**63 for seed in seeds)
