"""What must hold of a checklist's gate for any samples, and of the draws for any step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.advantage.checklist import ChecklistGate
from mmrl.advantage.types import Scored
from mmrl.curriculum.checklist import Checklist
from mmrl.curriculum.refill import admitted, useful
from mmrl.rollout import Prompt
from mmrl.sampler import GroupSampler

few = settings(max_examples=60, deadline=None)


@st.composite
def steps(draw: st.DrawFn) -> tuple[Scored, np.ndarray]:
    """Groups 0 to 3 and up to 8 groups of sub-questions with numbers from 10 on, in any order, and advantages."""
    parents = draw(st.lists(st.integers(0, 3), max_size=8))
    groups = [*((number, -1) for number in range(4)), *((10 + k, parent) for k, parent in enumerate(parents))]
    rows = draw(st.permutations([row for row in groups for _ in range(draw(st.integers(1, 4)))]))
    values = st.one_of(st.integers(0, 4).map(lambda k: k / 4), st.just(np.nan))
    score = np.array(draw(st.lists(values, min_size=len(rows), max_size=len(rows))), dtype=np.float64)
    group, parent = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    advantage = np.where(np.isnan(score), 0.0, np.linspace(-1, 1, len(rows)) + 0.01)
    return Scored(score, group, parent=parent), advantage


def part(scored: Scored, rows: np.ndarray) -> Scored:
    assert scored.parent is not None
    return replace(scored, reward=scored.reward[rows], group=scored.group[rows], parent=scored.parent[rows])


@few
@given(step=steps(), data=st.data(), threshold=st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_order_of_samples_and_numbers_of_groups_do_not_matter(
    step: tuple[Scored, np.ndarray], data: st.DataObject, threshold: float
) -> None:
    """So neither does how they are split between processes, whose samples are gathered one after another."""
    scored, advantage = step
    gate = ChecklistGate(threshold=threshold)
    found = gate(advantage, scored)
    order = np.array(data.draw(st.permutations(range(len(scored)))))
    np.testing.assert_array_equal(gate(advantage[order], part(scored, order)), found[order])
    assert gate.metrics(part(scored, order)) == gate.metrics(scored)
    assert scored.parent is not None
    names = np.random.default_rng(0).permutation(30)
    renamed = np.where(scored.parent < 0, -1, names[scored.parent])
    other = replace(scored, group=names[scored.group], parent=renamed)
    np.testing.assert_array_equal(gate(advantage, other), found)


@few
@given(step=steps())
def test_the_gate_only_takes_whole_groups_away_and_more_with_a_higher_threshold(
    step: tuple[Scored, np.ndarray],
) -> None:
    scored, advantage = step
    assert scored.parent is not None
    before = np.zeros(len(scored), dtype=bool)
    for threshold in (0.0, 0.25, 0.5, 0.75, 1.0):
        found = ChecklistGate(threshold=threshold)(advantage, scored)
        gone = found != advantage
        assert not found[gone].any() and (gone | ~before).all()
        assert not gone[scored.parent >= 0].any(), "sub-questions are always trained"
        for group in np.unique(scored.group[gone]):
            assert not found[scored.group == group].any()
        before = gone
    np.testing.assert_array_equal(ChecklistGate(threshold=0)(advantage, scored), advantage)


@few
@given(step=steps(), threshold=st.sampled_from([0.25, 0.5, 1.0]))
def test_answers_without_a_score_change_nothing(step: tuple[Scored, np.ndarray], threshold: float) -> None:
    scored, advantage = step
    rows = np.flatnonzero(scored.scorable)
    gate = ChecklistGate(threshold=threshold)
    np.testing.assert_array_equal(gate(advantage, scored)[rows], gate(advantage[rows], part(scored, rows)))


@few
@given(step=steps(), wanted=st.integers(0, 5))
def test_a_refill_counts_prompts_and_keeps_their_sub_questions(step: tuple[Scored, np.ndarray], wanted: int) -> None:
    scored, _ = step
    assert scored.parent is not None
    groups = useful(scored)
    assert set(groups.tolist()) <= {0, 1, 2, 3}
    after = admitted(scored, wanted)
    family = np.where(scored.parent < 0, scored.group, scored.parent)
    kept = np.isin(family, groups[:wanted])
    np.testing.assert_array_equal(after.reward, np.where(kept, scored.reward, np.nan))


@few
@given(
    sizes=st.lists(st.integers(0, 4), min_size=3, max_size=6),
    questions=st.integers(1, 5),
    index=st.integers(0, 20),
    seed=st.integers(0, 3),
)
def test_draws_of_a_step(sizes: list[int], questions: int, index: int, seed: int) -> None:
    prompts = [
        Prompt(f"p{k}", "?", meta={"checklist": [{"question": f"q{q}", "answer": q} for q in range(size)]})
        for k, size in enumerate(sizes)
    ]
    plain = GroupSampler(prompts, 3, 2, seed)
    asked = GroupSampler(prompts, 3, 2, seed, checklist=Checklist(questions, 3))
    draws, own = asked.draws(index), plain.draws(index)
    assert draws[: len(own)] == own and asked.draws(index) == draws, "the draws of the prompts stay, whatever is asked"
    assert len({draw.seed for draw in draws}) == len(draws)
    assert max(draw.group for draw in draws) < asked.groups and plain.groups == 3
    first = {draw.group: draw.prompt for draw in own}
    for draw in draws[len(own) :]:
        assert draw.parent is not None and draw.prompt.meta["parent"] == first[draw.parent].id
    for group, prompt in first.items():
        found = {draw.group: draw.prompt.id for draw in draws if draw.parent == group}
        assert len(set(found.values())) == len(found) == min(questions, len(prompt.meta["checklist"]))
        for number in found:
            assert [draw.member for draw in draws if draw.group == number] == [0, 1, 2]
