"""Every puzzle kind at every level: what is drawn is what is asked, right answers are right, guessing is worth what is said."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from mmrl.data.puzzles import maze
from mmrl.data.puzzles.answer import last_answer, well_formed, whole_number, whole_numbers
from mmrl.data.puzzles.count_shapes import CountShapes
from mmrl.data.puzzles.draw import PALETTE, PAPER
from mmrl.data.puzzles.jigsaw import Jigsaw, closest
from mmrl.data.puzzles.locate import Locate
from mmrl.data.puzzles.maze import Maze
from mmrl.data.puzzles.orders import verify_order
from mmrl.data.puzzles.patch_fit import PatchFit
from mmrl.data.puzzles.pictures import DigitPictures, FolderPictures, PhotographPictures, Pictures, Procedural
from mmrl.data.puzzles.puzzle import Puzzle, PuzzleMaker, Verdict, chance
from mmrl.data.puzzles.relation import STATEMENTS, STEPS, Relation
from mmrl.data.puzzles.rotation import Rotation, symmetry
from mmrl.errors import UserError

MAKERS: list[PuzzleMaker] = [
    Jigsaw(size=64), Rotation(size=48), PatchFit(size=64), CountShapes(size=72), Locate(size=72), Relation(size=80),
    Maze(size=72),
]  # fmt: skip
EVERY = [pytest.param(maker, level, id=f"{maker.kind}-{level}") for maker in MAKERS for level in maker.levels]
GOLDEN = Path(__file__).parents[1] / "golden" / "data" / "visual_jigsaw__rewards.json"


def made(maker: PuzzleMaker, level: int, seed: int = 0, pictures: Pictures | None = None) -> Puzzle:
    return maker.make(np.random.default_rng(seed), level, pictures or Procedural())


class Fixed(Pictures):
    """The same noise at every size."""

    def draw(self, rng: np.random.Generator, size: int) -> np.ndarray:
        return np.random.default_rng(size).integers(0, 256, (size, size, 3), dtype=np.uint8)


# ---- what holds for every kind and level


@pytest.mark.parametrize("maker, level", EVERY)
def test_a_right_answer_is_exact_and_the_same_seed_gives_the_same_puzzle(maker: PuzzleMaker, level: int) -> None:
    for seed in range(8):
        puzzle, again = made(maker, level, seed), made(maker, level, seed)
        assert maker.verify(json.loads(json.dumps(puzzle.target)), puzzle.answer) == Verdict(1.0, True)
        assert maker.verify(puzzle.target, f"  {puzzle.answer.lower()}. ").exact
        assert (again.question, again.target, again.answer) == (puzzle.question, puzzle.target, puzzle.answer)
        assert puzzle.question.count("<image>") in (0, len(puzzle.media))
        assert json.dumps(puzzle.meta) and str(puzzle.meta["rationale"]).endswith(".")
        for image, same in zip(puzzle.media, again.media, strict=True):
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and np.ptp(image) > 0
            assert np.array_equal(image, same)
    shown = {made(maker, level, seed).media[-1].tobytes() for seed in range(8)}
    assert len(shown) == 8


@pytest.mark.parametrize("maker, level", EVERY)
def test_guessing_is_worth_what_is_stated(maker: PuzzleMaker, level: int) -> None:
    found = chance(maker, level, number=150 if maker.kind in ("count_shapes", "maze") else 40, answers=30, seed=1)
    assert found.score == pytest.approx(maker.chance[level], abs=4.5 * found.error + 1e-9)
    assert 0 < found.error < 0.04 and found.exact <= found.score + 1e-9


@pytest.mark.parametrize("maker, level", EVERY)
@pytest.mark.parametrize(
    "answer", ["", "I do not know", "nan", "-", "1;DROP", "3,1,", "²", "99999999999999999999", "\x00"]
)
def test_what_cannot_be_read_scores_0_and_is_flagged(maker: PuzzleMaker, level: int, answer: str) -> None:
    assert maker.verify(made(maker, level).target, answer) == Verdict(0.0, False, False)


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.kind)
@pytest.mark.parametrize("level", [0, -1, 9])
def test_a_level_that_does_not_exist_names_those_that_do(maker: PuzzleMaker, level: int) -> None:
    with pytest.raises(UserError, match=f"puzzle '{maker.kind}' has no level {level} .*1: .*2: ") as caught:
        made(maker, level)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "maker", [maker for maker in MAKERS if "noise" in type(maker).model_fields], ids=lambda m: m.kind
)
def test_small_noisy_pictures_for_a_tiny_model(maker: PuzzleMaker) -> None:
    small = type(maker).model_validate({"size": 56, "noise": 12})
    clean = type(maker).model_validate({"size": 56})
    noisy, plain = made(small, 1, 3), made(clean, 1, 3)
    assert noisy.media[-1].shape == (56, 56, 3) and noisy.answer == plain.answer
    difference = noisy.media[-1].astype(float) - plain.media[-1]
    assert 5 < np.abs(difference).mean() < 12


# ---- what is drawn is what is asked


def blobs(picture: np.ndarray, color: str) -> list[tuple[float, float, int]]:
    """(x, y, pixels) of the connected components of a palette colour."""
    mask = (picture == PALETTE[color]).all(-1)
    labels, number = ndimage.label(mask)
    centres = ndimage.center_of_mass(mask, labels, range(1, number + 1))
    return [(x, y, int((labels == index).sum())) for index, (y, x) in enumerate(centres, start=1)]


def test_a_count_of_a_colour_is_the_number_of_its_blobs() -> None:
    counts = set()
    for seed in range(60):
        puzzle = made(CountShapes(size=120), 1, seed)
        color = re.search(r"many (\w+) things", puzzle.question).group(1)  # type: ignore[union-attr]
        assert len(blobs(puzzle.media[0], color)) == int(puzzle.answer)
        counts.add(int(puzzle.answer))
    assert counts == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("level, most", [(2, 4), (3, 8), (4, 12)])
def test_things_never_touch_and_share_looks_with_what_is_counted(level: int, most: int) -> None:
    shared = 0
    for seed in range(40):
        puzzle = made(CountShapes(size=180), level, seed)
        asked = re.search(r"many (\w+) (\w+) are", puzzle.question)
        total = sum(len(blobs(puzzle.media[0], color)) for color in PALETTE)
        written = re.search(r"Of the (\d+) things", puzzle.meta["rationale"])
        assert asked and written and total == int(written.group(1)) > 0
        assert 0 <= int(puzzle.answer) <= min(most, len(blobs(puzzle.media[0], asked.group(1))))
        shared += len(blobs(puzzle.media[0], asked.group(1))) > int(puzzle.answer)
    assert shared > 5


@pytest.mark.parametrize("level, parts", [(1, 2), (3, 3)])
def test_a_thing_alone_is_where_the_answer_says(level: int, parts: int) -> None:
    answers = set()
    for seed in range(60):
        puzzle = made(Locate(size=90), level, seed)
        (spot,) = [blob for color in PALETTE for blob in blobs(puzzle.media[0], color)]
        assert [int(spot[1] * parts / 90), int(spot[0] * parts / 90)] == [puzzle.target["row"], puzzle.target["column"]]
        answers.add(puzzle.answer)
    assert len(answers) == parts * parts and all(answer in puzzle.question for answer in answers)


def look(mask: np.ndarray) -> str:
    """The shape of a component, by how much of its box it fills and how wide it is half way down."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if box.mean() > 0.65:
        return "square" if box.mean() > 0.92 else "circle"
    return "cross" if box[len(box) // 2].mean() > 0.8 else "triangle"


def centre(picture: np.ndarray, thing: str) -> tuple[float, float]:
    """(x, y) of the only thing of that colour and shape."""
    color, shape = thing.split()
    labels, number = ndimage.label((picture == PALETTE[color]).all(-1))
    (found,) = [index for index in range(1, number + 1) if look(labels == index) == shape]
    rows, columns = np.nonzero(labels == found)
    return (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2


@pytest.mark.parametrize("level", [2, 3])
def test_directions_are_those_of_the_centres(level: int) -> None:
    for seed in range(40):
        puzzle = made(Relation(size=200), level, seed)
        b, a = re.search(r"from the (\w+ \w+) is the (\w+ \w+)", puzzle.question).groups()  # type: ignore[union-attr]
        here, there = centre(puzzle.media[0], a), centre(puzzle.media[0], b)
        angle = np.degrees(np.arctan2(here[0] - there[0], there[1] - here[1]))
        names = list(STEPS)
        assert names[round(angle / 45) % 8] == puzzle.answer


@pytest.mark.parametrize("level", [1, 4])
def test_statements_are_true_or_false_by_a_margin(level: int) -> None:
    seen: list[str] = []
    for seed in range(40):
        puzzle = made(Relation(size=200), level, seed)
        first = re.search(r"Is the (\w+ \w+)", puzzle.question).group(1)  # type: ignore[union-attr]
        here, holds = centre(puzzle.media[0], first), []
        for words, other in re.findall(r"(left of|right of|above|below) the (\w+ \w+)", puzzle.question):
            there = centre(puzzle.media[0], other)
            step = STATEMENTS[words]
            ahead = (here[0] - there[0]) * step[0] + (here[1] - there[1]) * step[1]
            assert abs(ahead) > 20
            holds.append(ahead > 0)
        assert puzzle.answer == ("yes" if all(holds) else "no")
        seen.append(puzzle.answer)
    assert 10 < seen.count("yes") < 30


@pytest.mark.parametrize("level, grid", [(1, 2), (2, 3), (3, 4)])
def test_the_right_order_puts_the_picture_together_and_shows_no_tile_at_its_place(level: int, grid: int) -> None:
    maker = Jigsaw(size=48, gap=0)
    for seed in range(10):
        puzzle = made(maker, level, seed, Fixed())
        tile, shown = 48 // grid, puzzle.media[0]
        whole = Fixed().draw(np.random.default_rng(0), 48)
        for place, number in enumerate(puzzle.target["order"]):
            (row, column), (y, x) = divmod(number - 1, grid), divmod(place, grid)
            piece = shown[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
            assert np.array_equal(piece, whole[y * tile : (y + 1) * tile, x * tile : (x + 1) * tile])
            assert number != place + 1
        as_shown = ",".join(str(n + 1) for n in range(grid * grid))
        assert maker.verify(puzzle.target, as_shown) == Verdict(0.0, False)


def test_gap_and_trim_part_the_tiles() -> None:
    shown = made(Jigsaw(size=60, gap=4, trim=0.2), 1, 0, Fixed()).media[0]
    assert (shown[28:32] == 128).all() and (shown[:, 28:32] == 128).all() and np.ptp(shown[:28, :28]) > 200


@pytest.mark.parametrize("level", list(PatchFit.levels))
def test_only_the_right_patch_fills_the_hole(level: int) -> None:
    for seed in range(6):
        puzzle = made(PatchFit(size=64), level, seed, Fixed())
        whole, (holed, *patches) = Fixed().draw(np.random.default_rng(0), 64), puzzle.media
        rows, columns = (np.flatnonzero((holed != whole).any(axis=(axis, 2))) for axis in (1, 0))
        hole = whole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        fits = [letter for letter, patch in zip("ABCDEFGH", patches, strict=False) if np.array_equal(patch, hole)]
        assert fits == [puzzle.answer] and len(patches) == {1: 2, 2: 4, 3: 4, 4: 6, 5: 8}[level]
        assert closest(patches) > 8


@pytest.mark.parametrize("reference", [True, False])
def test_turning_back_gives_the_upright_picture(reference: bool) -> None:
    for seed in range(12):
        puzzle = made(Rotation(size=48, reference=reference), 2, seed, Fixed())
        assert len(puzzle.media) == 1 + reference and puzzle.question.count("<image>") == 2 * reference
        upright = Fixed().draw(np.random.default_rng(0), 48)
        assert np.array_equal(
            np.rot90(puzzle.media[-1], int(puzzle.answer) // 90), upright
        )  # rot90 turns back, anticlockwise


def test_angles_between_quarters_turn_a_disc_clockwise() -> None:
    puzzle = next(
        p
        for p in (made(Rotation(size=96), 3, seed, Procedural(style="scene")) for seed in range(50))
        if p.answer == "45"
    )
    upright, shown = (picture.astype(float) for picture in puzzle.media)
    assert (shown[0, 0] == 128).all() and (upright[0, 0] == 128).all()
    back = np.asarray(Image.fromarray(puzzle.media[1]).rotate(45, Image.Resampling.BICUBIC)).astype(float)
    middle = slice(20, 76)
    assert np.abs(back - upright)[middle, middle].mean() < 6 < 15 < np.abs(shown - upright)[middle, middle].mean()


def test_pictures_that_look_the_same_when_turned_are_passed_over() -> None:
    class Bands(Pictures):
        """Symmetric at first, then not."""

        def draw(self, rng: np.random.Generator, size: int) -> np.ndarray:
            y, x = np.mgrid[0:size, 0:size]
            ring = (np.hypot(y - size / 2 + 0.5, x - size / 2 + 0.5) < size / 4) * 200
            tilted = ring if rng.integers(3) else y * 255 // size
            return np.repeat(tilted[..., None], 3, axis=2).astype(np.uint8)

    class Plain(Pictures):
        """Nothing to see."""

        def draw(self, rng: np.random.Generator, size: int) -> np.ndarray:
            return np.full((size, size, 3), 90, dtype=np.uint8)

    for seed in range(10):
        picture = made(Rotation(size=32), 2, seed, Bands()).media[0]
        assert picture[0, 0, 0] != picture[-1, 0, 0] and symmetry(picture, 90) < 0.5
    for maker in (Rotation(size=32), Jigsaw(size=64), PatchFit(size=64)):
        with pytest.raises(UserError, match=f"'{maker.kind}'.*use .*pictures"):
            made(maker, 1, 0, Plain())


# ---- mazes


def seen_doors(picture: np.ndarray, cells: int) -> dict[tuple[int, int], set[tuple[int, int]]]:
    """Which cells are joined, read from the pixels: no wall colour on the line between two centres."""
    side = len(picture)
    middle = [round((index + 0.5) * side / cells) for index in range(cells)]
    joined: dict[tuple[int, int], set[tuple[int, int]]] = {(r, c): set() for r in range(cells) for c in range(cells)}
    for row in range(cells):
        for column in range(cells):
            for down, right in ((0, 1), (1, 0)):
                r, c = row + down, column + right
                if r < cells and c < cells:
                    line = picture[middle[row] : middle[r] + 1, middle[column] : middle[c] + 1]
                    if not (line == maze.WALL).all(-1).any():
                        joined[row, column].add((r, c))
                        joined[r, c].add((row, column))
    return joined


@pytest.mark.parametrize("level", list(Maze.levels))
def test_the_drawn_maze_has_one_way_of_the_length_and_turns_of_its_level(level: int) -> None:
    rules = maze.LEVELS[level]
    for seed in range(10):
        puzzle = made(Maze(size=120), level, seed)
        picture, cells = puzzle.media[0], rules.cells
        joined = seen_doors(picture, cells)
        assert sum(len(there) for there in joined.values()) == 2 * (cells * cells - 1)  # a tree
        spot = [
            tuple(int(v * cells / 120) for v in np.argwhere((picture == color).all(-1)).mean(0))
            for color in (maze.START, maze.GOAL)
        ]
        ways = {spot[0]: [spot[0]]}
        for at in iter(queue := [spot[0]]):
            for there in joined[at] - ways.keys():
                ways[there] = [*ways[at], there]
                queue.append(there)
        assert len(ways) == cells * cells
        way = ways[spot[1]]
        steps = {(-1, 0): "U", (1, 0): "D", (0, -1): "L", (0, 1): "R"}
        moves = "".join(steps[b[0] - a[0], b[1] - a[1]] for a, b in itertools.pairwise(way))
        assert moves == puzzle.answer
        assert rules.length[0] <= len(moves) <= rules.length[1] and puzzle.meta["moves"] == len(moves)
        turns = sum(a != b for a, b in itertools.pairwise(moves))
        assert rules.turns[0] <= turns <= rules.turns[1] and puzzle.meta["turns"] == turns


def test_every_step_towards_the_goal_earns_more_and_a_wall_costs() -> None:
    puzzle = made(Maze(), 3, 2)
    scores = [Maze.verify(puzzle.target, puzzle.answer[:end]).score for end in range(1, len(puzzle.answer) + 1)]
    assert all(a < b for a, b in itertools.pairwise(scores)) and scores[-1] == 1 and scores[-2] < 0.5
    for end in range(2, len(puzzle.answer) + 1):
        at = maze.walk(puzzle.target["doors"], puzzle.target["cells"], puzzle.target["start"], puzzle.answer[:end])[0]
        bump = next((move for move in "UDLR" if not puzzle.target["doors"][at] & maze.BIT[move]), None)
        if bump is not None:
            hit = Maze.verify(puzzle.target, puzzle.answer[:end] + bump)
            assert not hit.exact and 0 < hit.score < scores[end - 1]
    back = {"U": "D", "D": "U", "L": "R", "R": "L"}[puzzle.answer[0]]
    assert Maze.verify(puzzle.target, puzzle.answer[0] + back + puzzle.answer).exact  # a detour still arrives


@pytest.mark.parametrize("said", ["{}", "{:, }", "words", "lower"])
def test_moves_may_be_letters_or_words(said: str) -> None:
    puzzle = made(Maze(), 2, 1)
    words = {"U": "up", "D": "down", "L": "left", "R": "right"}
    forms = {
        "{}": puzzle.answer, "{:, }": ", ".join(puzzle.answer),
        "words": " -> ".join(words[move] for move in puzzle.answer), "lower": puzzle.answer.lower(),
    }  # fmt: skip
    assert Maze.verify(puzzle.target, forms[said]).exact
    assert not Maze.verify(puzzle.target, "go " + forms[said]).parsed


# ---- partial credit


def test_more_right_places_earn_more() -> None:
    order = [3, 1, 2, 9, 5, 6, 7, 8, 4]
    guesses = ["3,1,2,9,5,6,7,8,4", "3,1,2,9,5,6,7,4,8", "3,1,2,9,5,7,6,4,8", "1,2,3,4,9,5,6,7,8"]
    scores = [verify_order(order, guess, "places", 3).score for guess in guesses]
    assert scores == [1, 7 / 9, 5 / 9, 0]
    assert [verify_order(order, guess, "displacement", 9).score for guess in guesses[:2]] == [1, 1 - 2 / 40]
    assert verify_order([4, 3, 2, 1], "1,2,3,4", "displacement", 4).score == 0
    assert verify_order([2, 1, 4, 3], "4,3,2,1", "neighbours", 2).score == 0.5  # both rows side by side, no column


@pytest.mark.parametrize(
    "guess", ["3,1,2,4,4", "1,2,3", "0,1,2,3,4", "1.5,2,3,4,5", "a,b", "5,4,3,2,1,6", "12345", "1,,2"]
)
def test_only_permutations_are_orders(guess: str) -> None:
    assert verify_order([2, 3, 4, 5, 1], guess, "places", 5) == Verdict(0.0, False, False)


def test_visual_jigsaw_golden() -> None:
    """Accuracy part of the original rewards. Its format bonus .2 is the reward `puzzle` in mode format here, its penalty for
    repeated lines is no concern of the puzzle, and boxed answers are unpacked by the test: ours stand in <answer>."""
    golden = json.loads(GOLDEN.read_text())
    checked = 0
    for (text, order), output in zip(golden["inputs"]["cases"], golden["outputs"]["cases"], strict=True):
        boxed = re.search(r"\\boxed\{(.*)\}", text)
        if boxed is None:  # no answer in the form asked for: 0 in total there, unparsed here
            assert output["score"] == 0 and last_answer(text) is None
            continue
        verdict = verify_order(order, boxed.group(1), "five_or_more", len(order))
        assert verdict.score == pytest.approx(output["acc_reward"], abs=1e-8) and verdict.exact == bool(output["acc"])
        checked += 1
    assert checked == 10
    for (text, order), output in zip(golden["inputs"]["nothink"], golden["outputs"]["nothink"], strict=True):
        assert verify_order(order, text, "five_or_more", len(order)).score == pytest.approx(
            output["acc_reward"], abs=1e-8
        )


def test_nearer_numbers_angles_directions_and_places_earn_more() -> None:
    assert [CountShapes.verify({"count": 4}, str(n)).score for n in (4, 3, 2, 1, 0, 5, 8, -1)] == [
        1,
        0.75,
        0.5,
        0.25,
        0,
        0.75,
        0,
        0,
    ]
    assert [CountShapes.verify({"count": 0}, str(n)).score for n in (0, 1)] == [1, 0]
    assert CountShapes.verify({"count": 2}, "Two.").exact
    angles = [Rotation.verify({"angle": 270, "step": 90}, said).score for said in ("270 degrees", "0", "180°", "90")]
    assert angles == [1, 0.25, 0.25, 0] and not Rotation.verify({"angle": 270, "step": 90}, "45").parsed
    eight = {"answer": "above", "choices": list(STEPS)}
    ways = ("Above", "upper-left", "right", "lower right", "below")
    assert [Relation.verify(eight, said).score for said in ways] == [1, 0.375, 0.25, 0.125, 0]
    assert Relation.verify({"answer": "yes", "choices": ["yes", "no"]}, "no") == Verdict(0.0, False)
    place = {"row": 0, "column": 1, "parts": 2}
    said = ("top right", "upper left", "lower right", "bottom left", "middle")
    assert [Locate.verify(place, one).score for one in said] == [1, 0.25, 0.25, 0, 0]
    patches = made(PatchFit(size=64), 4, 5).target
    ranked = sorted(PatchFit.verify(patches, letter).score for letter in "ABCDEF")
    assert ranked == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 1])


# ---- answers


@pytest.mark.parametrize(
    "text, answer",
    [
        ("<think>r</think><answer> 3 </answer>", "3"),
        ("<answer>1</answer> no, <ANSWER>\n2\n</Answer>", "2"),
        ("<think><answer>1</answer></think><answer>2</answer>", "2"),
        ("<think><answer>1</answer>", None),
        ("r</think><answer>2</answer>", "2"),
        ("<answer>1</answer><answer>2", None),
        ("<answer>1<answer>2</answer>", "2"),
        ("<think>a<think>b</think>c</think><answer>2</answer>", "2"),
        ("<answer></answer>", ""),
        ("2", None),
        ("", None),
        ("<answer>2", None),
        ("<answer>2</answer><think>but", None),
    ],
)
def test_the_last_whole_answer_after_the_reasoning_counts(text: str, answer: str | None) -> None:
    assert last_answer(text) == answer


def test_format_is_one_think_and_one_answer_block() -> None:
    good = ["<think>a</think><answer>b</answer>", "<think></think>\n<answer>\n3</answer>\n"]
    bad = ["<answer>b</answer>", "<think>a</think>b", "<think>a</think><answer>b</answer>.", "x<think>a</think><answer>b</answer>",
           "<think>a</think><answer>b</answer><answer>c</answer>", "<think>a<answer>b</answer></think><answer>b</answer>"]  # fmt: skip
    assert all(map(well_formed, good)) and not any(map(well_formed, bad))


def test_numbers_are_read_strictly() -> None:
    found: list[Any] = [whole_number(said) for said in ("7", "+7", "-2", "Seven.", "7 things", "7.5", "", "1e3", "٣")]
    assert found[:8] == [7, 7, -2, 7, None, None, None, None]
    assert whole_numbers("[2, 1; 3 4]") == [2, 1, 3, 4] and whole_numbers("(2,1)") == [2, 1]
    assert whole_numbers("12345678901234567890") == [12345678901234567890]  # one number, however long
    assert whole_numbers("1234567890,2") == [1234567890, 2] and whole_numbers("1" * 1001) is None
    assert [whole_numbers(said) for said in ("", "1,", "[1", "1 and 2", "-1,2")] == [None] * 5


# ---- pictures


@pytest.mark.parametrize(
    "pictures",
    [
        *(Procedural(style=style) for style in ("mixed", "shapes", "texture", "scene")),
        PhotographPictures(),
        DigitPictures(),
    ],
    ids=lambda p: f"{type(p).__name__}{getattr(p, 'style', '')}",
)
def test_pictures_are_a_function_of_the_generator(pictures: Pictures) -> None:
    pictures.check()
    for size in (24, 65):
        drawn = [pictures.draw(np.random.default_rng(seed), size) for seed in (0, 0, 1)]
        assert all(one.shape == (size, size, 3) and one.dtype == np.uint8 and one.std() > 3 for one in drawn)
        assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])


@pytest.mark.parametrize("pictures", [PhotographPictures(), DigitPictures()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("kind", [Jigsaw, Rotation, PatchFit])
def test_puzzles_from_real_pictures(kind: type[PuzzleMaker], pictures: Pictures) -> None:
    maker = kind.model_validate({"size": 96})
    for level in maker.levels:
        if isinstance(pictures, DigitPictures) and kind is not Rotation and level > 1:
            continue
        puzzle = made(maker, level, level, pictures)
        assert maker.verify(puzzle.target, puzzle.answer).exact


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no folder {tmp_path}/none"):
        FolderPictures(path=tmp_path / "none").check()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no picture in .*empty .*\.png"):
        FolderPictures(path=tmp_path / "empty").check()
    (tmp_path / "in" / "deep").mkdir(parents=True)
    picture = Procedural().draw(np.random.default_rng(0), 80)
    Image.fromarray(picture[:60]).save(tmp_path / "in" / "deep" / "a.png")
    folder = FolderPictures(path=tmp_path / "in", zoom=1)
    parts = [folder.draw(np.random.default_rng(seed), 60) for seed in range(12)]
    lefts = [[x for x in range(21) if np.array_equal(part, picture[:60, x : x + 60])] for part in parts]
    assert all(lefts) and len({found[0] for found in lefts}) > 3  # uncut from top to bottom, from all over the width
    (tmp_path / "in" / "deep" / "a.png").unlink()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken\.jpg is not a picture"):
        made(Jigsaw(), 1, 0, FolderPictures(path=tmp_path / "bad"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install scikit-image"):
        PhotographPictures().check()
    with pytest.raises(UserError, match="pip install scikit-learn"):
        DigitPictures().check()


def test_the_paper_is_no_colour_of_a_thing() -> None:
    assert PAPER not in PALETTE.values()
