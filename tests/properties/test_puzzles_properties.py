"""Laws of the puzzles' verifiers: any text, any order, any walk."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mmrl.data.puzzles import maze
from mmrl.data.puzzles.answer import last_answer, well_formed
from mmrl.data.puzzles.count_shapes import CountShapes, count_credit
from mmrl.data.puzzles.jigsaw import Jigsaw
from mmrl.data.puzzles.locate import Locate
from mmrl.data.puzzles.maze import Maze
from mmrl.data.puzzles.orders import displacement, five_or_more, neighbours, places, shuffled, verify_order
from mmrl.data.puzzles.patch_fit import NEAR, PatchFit, credits_of
from mmrl.data.puzzles.pictures import Procedural
from mmrl.data.puzzles.puzzle import Puzzle, PuzzleMaker
from mmrl.data.puzzles.relation import Relation
from mmrl.data.puzzles.rotation import Rotation

MAKERS: list[PuzzleMaker] = [
    Jigsaw(size=64), Rotation(size=32), PatchFit(size=64), CountShapes(size=48), Locate(size=48), Relation(size=60),
    Maze(size=40),
]  # fmt: skip
boards = st.sampled_from([(4, 2), (9, 3), (16, 4)])
near_answers = st.text(alphabet="0123456789,; -[]().udlrABCDabcyesno°\n", max_size=24)
walks = st.text(alphabet="UDLR", max_size=40)


@functools.cache
def puzzle(kind: int, level: int) -> Puzzle:
    return MAKERS[kind].make(np.random.default_rng([kind, level]), level, Procedural())


@pytest.mark.parametrize("kind", range(len(MAKERS)), ids=[maker.kind for maker in MAKERS])
@settings(deadline=None, max_examples=60)
@given(answer=st.one_of(st.text(max_size=30), near_answers, st.integers().map(str)), data=st.data())
def test_any_answer_gets_a_verdict(kind: int, answer: str, data: st.DataObject) -> None:
    maker = MAKERS[kind]
    target = puzzle(kind, data.draw(st.sampled_from(sorted(maker.levels)))).target
    found = maker.verify(target, answer)
    assert 0 <= found.score <= 1 and found.exact == (found.score == 1) and (found.parsed or found.score == 0)
    assert maker.verify(target, f" {answer} ") == found


@pytest.mark.parametrize("kind", range(len(MAKERS)), ids=[maker.kind for maker in MAKERS])
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), data=st.data())
def test_random_answers_can_be_read(kind: int, seed: int, data: st.DataObject) -> None:
    maker = MAKERS[kind]
    target = puzzle(kind, data.draw(st.sampled_from(sorted(maker.levels)))).target
    assert maker.verify(target, maker.random_answer(np.random.default_rng(seed), target)).parsed


@given(boards, st.data())
def test_orders_match_loops_and_only_the_right_one_is_worth_1(board: tuple[int, int], data: st.DataObject) -> None:
    n, columns = board
    order = data.draw(st.permutations(range(1, n + 1)))
    guess = data.draw(st.permutations(range(1, n + 1)))
    right = moved = joined = true = 0
    for i in range(n):
        right += order[i] == guess[i]
        for j in range(n):
            moved += abs(i - j) * (order[i] == guess[j])
            for step, beside in ((1, True), (columns, False)):
                if (beside and i % columns == columns - 1) or i + step >= n:
                    continue
                k, fits = guess.index(order[i]), not (beside and guess.index(order[i]) % columns == columns - 1)
                true += j == 0
                joined += j == 0 and fits and k + step < n and guess[k + step] == order[i + step]
    assert places(order, guess) == right / n
    assert displacement(order, guess) == pytest.approx(1 - moved / (n**2 // 2), abs=1e-12)
    assert neighbours(order, guess, columns) == joined / true
    assert five_or_more(order, guess) == pytest.approx(0.2 * right / n if n > 4 else 0, abs=1e-12)
    for rule in ("places", "neighbours", "displacement", "five_or_more"):
        verdict = verify_order(order, ",".join(map(str, guess)), rule, columns)  # type: ignore[arg-type]
        assert verdict.exact == (order == guess) and (verdict.score == 1) == verdict.exact and verdict.parsed


@given(boards, st.data())
def test_putting_one_more_tile_right_earns_more(board: tuple[int, int], data: st.DataObject) -> None:
    n, columns = board
    order, guess = (list(data.draw(st.permutations(range(1, n + 1)))) for _ in range(2))
    wrong = [place for place in range(n) if guess[place] != order[place]]
    assume(wrong)
    place = data.draw(st.sampled_from(wrong))
    better = list(guess)
    other = better.index(order[place])
    better[place], better[other] = better[other], better[place]
    before, after = (verify_order(order, str(g), "places", columns).score for g in (guess, better))
    assert after > before


@given(st.integers(2, 16), st.integers(0, 2**32))
def test_no_piece_is_shown_at_its_place(n: int, seed: int) -> None:
    order = shuffled(n, np.random.default_rng(seed))
    assert sorted(order) == list(range(1, n + 1)) and places(order, list(range(1, n + 1))) == 0


@given(st.integers(0, 12), st.integers(-3, 30))
def test_counts_match_the_formula_and_nearer_is_better(true: int, guess: int) -> None:
    credit = count_credit(guess, true)
    assert credit == pytest.approx(max(0.0, 1.0 - abs(guess - true) / (true if true > 1 else 1)), abs=1e-12)
    nearer = guess + (true > guess) - (true < guess)
    assert count_credit(nearer, true) >= credit and (credit < 1 or guess == true)
    assert not (0 < credit < 1) or count_credit(nearer, true) > credit


@given(st.lists(st.floats(0.1, 200), min_size=1, max_size=7, unique=True), st.data())
def test_patches_that_differ_less_earn_more_and_the_mean_is_the_stated_one(
    wrong: list[float], data: st.DataObject
) -> None:
    difference = list(data.draw(st.permutations([0.0, *wrong])))
    worth = credits_of(difference)
    ranked = [credit for _, credit in sorted(zip(difference, worth, strict=True))]
    assert ranked[0] == 1 and ranked[-1] == 0 and all(a > b for a, b in itertools.pairwise(ranked))
    m = len(difference)
    assert sum(worth) / m == pytest.approx((1 + NEAR * (m - 2) / 2) / m, abs=1e-12)


@settings(deadline=None)
@given(st.sampled_from([1, 2, 3, 4]), walks)
def test_walks_match_a_simulation_on_the_drawn_walls(level: int, moves: str) -> None:
    made = puzzle(6, level)
    picture, cells, target = made.media[0], made.target["cells"], made.target
    middle = [round((index + 0.5) * len(picture) / cells) for index in range(cells)]
    row, column = divmod(target["start"], cells)
    legal = True
    for move in moves:
        down, right = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}[move]
        r, c = row + down, column + right
        if not (0 <= r < cells and 0 <= c < cells):
            legal = False
            break
        rows, columns = sorted((middle[row], middle[r])), sorted((middle[column], middle[c]))
        line = picture[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1]
        if (line == maze.WALL).all(-1).any():
            legal = False
            break
        row, column = r, c
    assert maze.walk(target["doors"], cells, target["start"], moves) == (row * cells + column, legal)
    verdict = Maze.verify(target, moves)
    assert verdict.exact == (legal and row * cells + column == target["goal"])
    assert verdict.parsed == bool(moves)


@given(st.text(alphabet="<>/thinkanswer 3", max_size=60), st.text(alphabet="ab 3\n", max_size=10))
def test_a_demonstration_is_read_back_whatever_stands_before_it(before: str, answer: str) -> None:
    assert last_answer(f"{before}</think><answer>{answer}</answer>") == answer.strip()
    assert well_formed(f"<think>{answer}</think> <answer>{answer}</answer>")
    found = last_answer(before)
    assert found is None or f"{found}" in before


@given(st.integers(-720, 720), st.sampled_from([180, 90, 45, 30]), st.data())
def test_angles_are_worth_what_they_are_off(said: int, step: int, data: st.DataObject) -> None:
    angle = step * data.draw(st.integers(0, 360 // step - 1))
    found = Rotation.verify({"angle": angle, "step": step}, str(said))
    assert found.parsed == (0 <= said < 360 and said % step == 0)
    if found.parsed and said != angle:
        off = min((said - angle) % 360, (angle - said) % 360)
        assert found.score == pytest.approx((1 - off / 180) / 2)
