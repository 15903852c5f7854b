"""Sub-questions of prompts: how they are written, asked and scored, and what they gate in an rl step and in a config."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import PrivateAttr
from toy_policy import FakeGroup, SharedMail, ToyPolicy, gradients, stage, work

from mmrl.advantage.checklist import ChecklistGate
from mmrl.advantage.group import DrAdvantage
from mmrl.advantage.types import Floats, Scored, Shaping
from mmrl.config import load
from mmrl.config.schema import ChecklistSection, CurriculumSection, RefillSection
from mmrl.curriculum.checklist import Checklist, check_checklists, sub_questions
from mmrl.data.puzzles.count_shapes import CountShapes
from mmrl.data.puzzles.pictures import Procedural
from mmrl.data.puzzles.reward import judge
from mmrl.data.puzzles.source import PuzzlePrompts, answered
from mmrl.errors import ConfigError, UserError
from mmrl.meter import Meter
from mmrl.objective.kl import KL
from mmrl.objective.objective import Objective
from mmrl.reward import Failed, Reward
from mmrl.rollout import Prompt, Sample
from mmrl.stages.rl import RLWork

# ---- what a prompt brings along


def test_sub_questions_are_prompts_of_their_own() -> None:
    picture = np.zeros((4, 4, 3), dtype=np.uint8)
    listed = [
        {"question": "How many?", "answer": 3},
        {"question": "Red?", "answer": "yes", "skill": "colour", "kind": "x"},
    ]
    prompt = Prompt("a", "Why?", (picture,), "B", {"fps": 2.0, "level": 4, "checklist": listed})
    first, second = sub_questions(prompt)
    assert (first.id, first.text, first.target) == ("a/checklist/0", "How many?", 3)
    assert first.media[0] is picture
    assert first.meta == {"fps": 2.0, "kind": "checklist", "parent": "a"}
    assert second.id == "a/checklist/1" and second.meta["skill"] == "colour" and second.meta["kind"] == "checklist"
    assert sub_questions(Prompt("b", "?")) == [] == sub_questions(Prompt("b", "?", meta={"checklist": []}))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Is it red?", "meta.checklist is 'Is it red?' (str); expected a list of {question: ..., answer: ...}"),
        (["Is it red?"], "meta.checklist[0] is 'Is it red?' (str); expected {question: ..., answer: ...}"),
        (
            [{"question": "?", "answer": 0}, {"answer": 1}],
            "meta.checklist[1]: question is None (NoneType); expected a text",
        ),
        ([{"question": " ", "answer": 1}], "meta.checklist[0]: question is ' ' (str); expected a text"),
        ([{"question": "Red?"}], "meta.checklist[0] has no answer, which the rewards compare with"),
    ],
)
def test_what_is_no_checklist_is_refused(said: Any, told: str) -> None:
    for ask in (sub_questions, lambda prompt: check_checklists([asking("fine"), prompt])):
        with pytest.raises(UserError) as caught:
            ask(Prompt("p7", "?", meta={"checklist": said}))
        assert str(caught.value) == f"prompt 'p7': {told}"


def test_prompts_without_any_sub_question_are_refused() -> None:
    with pytest.raises(UserError, match="none of the 2 prompts has sub-questions"):
        check_checklists([Prompt("a", "?"), Prompt("b", "?", meta={"checklist": []})])
    assert [one.id for one in check_checklists([Prompt("a", "?"), asking("b")])] == ["b/checklist/0", "b/checklist/1"]


def test_other_sub_questions_at_other_steps() -> None:
    prompt = Prompt("a", "?", meta={"checklist": [{"question": f"{k}?", "answer": k} for k in range(6)]})
    ask = Checklist(2, 4)
    seen = [tuple(one.id for one in ask.chosen(prompt, 7, "rl", index)) for index in range(40)]
    assert seen == [tuple(one.id for one in ask.chosen(prompt, 7, "rl", index)) for index in range(40)]
    assert all(len(set(pair)) == 2 and list(pair) == sorted(pair) for pair in seen)
    assert len({id for pair in seen for id in pair}) == 6 and len(set(seen)) > 5
    assert seen != [tuple(one.id for one in ask.chosen(prompt, 8, "rl", index)) for index in range(40)]


# ---- in an rl step


def asking(id: str, number: int = 2, picture: float = 1.0) -> Prompt:
    listed = [{"question": f"{id} {k}?", "answer": k} for k in range(number)]
    return Prompt(id, "?", (picture,), meta={"checklist": listed})


@dataclass
class Asking:
    """12 prompts with 0 to 3 sub-questions; pictures that make the right word likely, or unlikely."""

    prompts: list[Prompt] = field(
        default_factory=lambda: [asking(str(k), k % 4, (-2.0, 2.5, 0.5)[k % 3]) for k in range(12)]
    )

    def load(self) -> list[Prompt]:
        return self.prompts


class Broken(Reward):
    """1 for answers that start with the word 1; fails on what `fails` says, skips what `skips` says."""

    fails: Any = None
    skips: Any = None
    worth: float = 1.0

    def score(self, samples: Sequence[Sample]) -> list[Any]:
        return [self._one(sample) for sample in samples]

    def _one(self, sample: Sample) -> Any:
        if self.fails is not None and self.fails(sample.prompt):
            return Failed("broken")
        if self.skips is not None and self.skips(sample.prompt):
            return None
        return self.worth * (sample.text or "").startswith("1")


class Spy(Shaping):
    """Keeps what the advantages saw."""

    _seen: list[Scored] = PrivateAttr(default_factory=list)

    def __call__(self, advantage: Floats, scored: Scored) -> Floats:
        self._seen.append(scored)
        return advantage


class ByName(Shaping):
    """The gate by loops over the ids of prompts, for one rollout in which every prompt is there once."""

    threshold: float

    def __call__(self, advantage: Floats, scored: Scored) -> Floats:
        assert scored.prompts is not None
        found = advantage.copy()
        for row, id in enumerate(scored.prompts):
            own = [
                float(scored.reward[k])
                for k, other in enumerate(scored.prompts)
                if other.startswith(f"{id}/checklist/") and not np.isnan(scored.reward[k])
            ]
            if own and sum(own) / len(own) < self.threshold:
                found[row] = 0.0
        return found


ASKED = ChecklistSection(questions=2, group_size=4)


def own_stage(
    *shaping: Shaping,
    refill: RefillSection | None = None,
    reward: Any = None,
    terms: tuple[Any, ...] = (),
    asked: ChecklistSection | None = ASKED,
    **options: Any,
) -> Any:
    found = stage(Objective(DrAdvantage(), shaping=shaping, terms=terms), prompts=Asking(), **options)  # type: ignore[arg-type]
    curriculum = CurriculumSection(refill=refill, checklist=asked)
    found.section = found.section.model_copy(update={"curriculum": curriculum})
    if reward is not None:
        found.rewards = {"ones": (reward, 1.0)}
    return found


def step(*shaping: Shaping, number: int = 0, **options: Any) -> tuple[list[Any], dict[str, float], ToyPolicy]:
    policy, meter = ToyPolicy(), Meter()
    found = gradients(policy, work(policy, own_stage(*shaping, **options)).updates(number, meter))
    return found, meter.reduce(FakeGroup()), policy


def test_threshold_zero_is_the_run_without_a_gate() -> None:
    for number in range(3):
        (plain,), base, _ = step(number=number)
        (found,), metrics, _ = step(ChecklistGate(threshold=0), number=number)
        np.testing.assert_array_equal(found, plain)
        assert {key: value for key, value in metrics.items() if key in base and "time" not in key} == base
        assert metrics["checklist/gated"] == 0
    (plain,), _, _ = step(reward=Broken(worth=3.0))
    (found,), metrics, _ = step(ChecklistGate(threshold=0), reward=Broken(worth=3.0))
    np.testing.assert_array_equal(found, plain)
    assert metrics["checklist/accuracy"] > 0, "without a threshold any reward will do"


@pytest.mark.parametrize("threshold", [0.4, 0.7, 1.0])
def test_the_gate_is_the_one_by_names(threshold: float) -> None:
    (found,), metrics, _ = step(ChecklistGate(threshold=threshold))
    (expected,), _, _ = step(ByName(threshold=threshold))
    np.testing.assert_array_equal(found, expected)
    (plain,), _, _ = step()
    assert metrics["checklist/gated"] > 0 and np.abs(found - plain).max() > 1e-4


def test_sub_questions_are_drawn_scored_and_trained() -> None:
    spy = Spy()
    (with_them,), _, policy = step(spy)
    (without,), _, alone = step(asked=None)
    main = [draw for draw in policy.drawn if draw.parent is None]
    assert main == alone.drawn and len(policy.drawn) > len(main)
    assert np.abs(with_them - without).max() > 1e-4
    (seen,) = spy._seen
    assert len(seen) == len(policy.drawn) and np.isfinite(seen.reward).all()
    check_parents(seen)


def test_sub_questions_that_are_too_long_are_left_out_and_their_prompt_stays() -> None:
    class Short(ToyPolicy):
        def fits(self, prompts: Sequence[Prompt]) -> tuple[list[Prompt], dict[str, int]]:
            kept = [prompt for prompt in prompts if not prompt.id.endswith("/checklist/1")]
            return kept, {prompt.id: 99 for prompt in prompts if prompt not in kept}

    said: list[str] = []
    policy = Short()
    own = RLWork(own_stage(), policy, FakeGroup(), 7, said.append)  # type: ignore[arg-type]
    gradients(policy, own.updates(0, Meter()))
    asked = {draw.prompt.id for draw in policy.drawn}
    _, _, free = step()
    everything = {draw.prompt.id for draw in free.drawn}
    assert {id for id in asked if "/" not in id} == {id for id in everything if "/" not in id}
    assert any(id.endswith("/checklist/0") for id in asked)
    assert any(id.endswith("/checklist/1") for id in everything - asked)
    told = [line for line in said if "sub-question" in line]
    assert len(told) == 1 and told[0].endswith("is too long for the policy (99 tokens)")


def check_parents(seen: Scored) -> None:
    """Every sub-question's parent is the group of the prompt that its id names."""
    assert seen.parent is not None and seen.prompts is not None and (seen.parent >= 0).any()
    of_group: dict[int, str] = {}
    for group, prompt in zip(seen.group.tolist(), seen.prompts, strict=True):
        assert of_group.setdefault(group, prompt) == prompt, "a group is one prompt's"
    for parent, prompt in zip(seen.parent.tolist(), seen.prompts, strict=True):
        assert (parent < 0) == ("/checklist/" not in prompt)
        assert parent < 0 or prompt.startswith(f"{of_group[parent]}/checklist/")


REFILL = RefillSection(max_rounds=4)


def test_parents_are_found_over_several_rounds_and_parts() -> None:
    spy = Spy()
    options: dict[str, Any] = {"refill": REFILL, "group_size": 3, "rollout_parts": 2, "updates_per_rollout": 1}
    _, metrics, policy = step(spy, **options)
    assert metrics["refill/rounds"] > 1 and metrics["refill/groups"] <= 4
    (seen,) = spy._seen
    check_parents(seen)
    trained = {group for group, ok in zip(seen.group.tolist(), seen.scorable, strict=True) if ok}
    prompts = {group for group in trained if group in set(seen.group[seen.parent < 0].tolist())}
    assert len(prompts) == metrics["refill/groups"], "a refill counts prompts, not sub-questions"
    assert trained - prompts and len(policy.drawn) == len(seen)


def test_a_gated_prompt_still_counts_and_its_terms_stay() -> None:
    """Only the policy loss of a gated prompt is gone."""
    terms = (KL(coef=0.3),)
    (closed,), _, _ = step(ChecklistGate(threshold=1.0), terms=terms)
    (bare,), _, _ = step(ChecklistGate(threshold=1.0))
    (base_term,), _, _ = step(terms=terms)
    (base,), _, _ = step()
    np.testing.assert_allclose(closed - bare, base_term - base, rtol=1e-4, atol=1e-7)


def test_a_prompt_of_whose_sub_questions_nothing_is_known_is_not_gated() -> None:
    failing = Broken(fails=lambda prompt: prompt.meta.get("kind") == "checklist")
    (found,), metrics, _ = step(ChecklistGate(threshold=1.0), reward=failing, failures={"share": 1.0})
    (plain,), _, _ = step(reward=failing, failures={"share": 1.0})
    np.testing.assert_array_equal(found, plain)
    assert metrics["checklist/unknown"] == 1 and metrics["checklist/gated"] == 0
    assert "checklist/accuracy" not in metrics and metrics["failed"] > 0


def test_failed_answers_stay_out_of_the_accuracy() -> None:
    """Of every sub-question number 0 all answers fail; those of number 1 decide."""
    failing = Broken(fails=lambda prompt: prompt.id.endswith("/checklist/0"))
    spy = Spy()
    _, metrics, _ = step(spy, ChecklistGate(threshold=0.5), reward=failing, failures={"share": 1.0})
    (seen,) = spy._seen
    assert seen.parent is not None
    own = seen.reward[seen.parent >= 0]
    assert np.isnan(own).any() and metrics["checklist/accuracy"] == pytest.approx(np.nanmean(own))
    assert 0 < metrics["checklist/unknown"] < 1


def test_a_reward_that_is_no_accuracy_is_refused() -> None:
    with pytest.raises(UserError, match=r"accuracy between 0 and 1, got 3; name the reward to read"):
        step(ChecklistGate(), reward=Broken(worth=3.0))
    own = own_stage(ChecklistGate(accuracy="main"))
    own.rewards |= {"main": (Broken(skips=lambda prompt: prompt.meta.get("kind") == "checklist"), 1.0)}
    policy = ToyPolicy()
    with pytest.raises(UserError, match="'main', which scores none of the answers to sub-questions"):
        gradients(policy, work(policy, own).updates(0, Meter()))
    with pytest.raises(UserError, match=r"add curriculum\.checklist"):
        ChecklistGate()(np.zeros(2), Scored(np.zeros(2), np.zeros(2, dtype=np.int64)))


def test_a_named_reward_is_read_alone() -> None:
    """Of two rewards one says whether a sub-question was answered."""
    own = own_stage(ChecklistGate(threshold=0.5, accuracy="right"))
    own.rewards = {"ones": (Broken(worth=9.0), 1.0), "right": (Broken(worth=0.25), 0.0)}
    policy, meter = ToyPolicy(), Meter()
    gradients(policy, work(policy, own).updates(0, meter))
    metrics = meter.reduce(FakeGroup())
    assert 0 < metrics["checklist/accuracy"] <= 0.25 and metrics["checklist/gated"] == 1


@pytest.mark.parametrize("options", [{}, {"refill": REFILL}, {"rollout_parts": 2}])
def test_two_ranks_are_one(options: dict[str, Any]) -> None:
    """With 3 prompts of 5 samples and sub-questions of 4 groups are cut between the ranks."""
    options = options | {"prompts_per_step": 3, "group_size": 5, "updates_per_rollout": 3}
    gate = ChecklistGate(threshold=0.7)
    whole, alone, _ = step(gate, **options)
    mail = SharedMail(2)
    parts: list[Any] = [None, None]
    seen: list[dict[str, float]] = [{}, {}]

    def rank(number: int) -> None:
        policy, meter = ToyPolicy(), Meter()
        group = FakeGroup(number, mail)
        parts[number] = gradients(policy, work(policy, own_stage(gate, **options), group).updates(0, meter))
        seen[number] = meter.reduce(group)

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = {"checklist/accuracy", "checklist/gated", "checklist/unknown", "reward", "refill/rounds"} & alone.keys()
    assert len(names) >= 4 and alone["checklist/gated"] > 0
    for name in names:
        assert seen[0][name] == seen[1][name] == pytest.approx(alone[name], rel=1e-6), name
    for one, left, right in zip(whole, *parts, strict=True):
        np.testing.assert_allclose(left + right, one, rtol=1e-4, atol=1e-6)


# ---- puzzles


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_puzzles_know_what_is_in_their_pictures(level: int) -> None:
    """The picture and the question stay the same; every answer earns 1 from the reward of puzzles, and others less."""
    plain, asked = CountShapes(size=48), CountShapes(size=48, checklist=True)
    said: list[str] = []
    for seed in range(30):
        puzzle = asked.make(np.random.default_rng(seed), level, Procedural())
        base = plain.make(np.random.default_rng(seed), level, Procedural())
        assert puzzle.question == base.question and (puzzle.media[0] == base.media[0]).all()
        assert "checklist" not in base.meta
        questions = puzzle.meta["checklist"]
        assert len(questions) == (3 if level == 1 else 5)
        total = questions[0]["answer"]["puzzle"]["count"]
        assert (
            puzzle.target["count"] <= total
            and questions[0]["question"] == "How many things are in the picture? Give a number."
        )
        if level > 1:
            colour, shape = (one["answer"]["puzzle"]["count"] for one in questions[1:3])
            assert puzzle.target["count"] <= min(colour, shape) and max(colour, shape) <= total
        for one in questions:
            answer = one["answer"]["answer"]
            assert judge(answered(answer), one["answer"]).exact
            wrong = {"yes": "no", "no": "yes"}.get(answer) or str(int(answer) + 1)
            assert judge(answered(wrong), one["answer"]).score < 1
        said += [one["answer"]["answer"] for one in questions if "Is there" in one["question"]]
    assert said.count("yes") == said.count("no") == 30 and said[::2] != said[1::2]


def test_counts_of_a_checklist_are_those_of_the_picture() -> None:
    """Level 2 shows every thing of the colour: the pixels of other colours are gone when the count of things is that of the colour."""
    from mmrl.data.puzzles.draw import PALETTE

    for seed in range(20):
        puzzle = CountShapes(size=96, checklist=True).make(np.random.default_rng(seed), 2, Procedural())
        shown = {tuple(pixel) for pixel in puzzle.media[0].reshape(-1, 3).tolist()}
        total, coloured = (one["answer"]["puzzle"]["count"] for one in puzzle.meta["checklist"][:2])
        color = puzzle.meta["checklist"][1]["question"].split()[2]
        assert (PALETTE[color] in shown) == (coloured > 0)
        assert any(PALETTE[other] in shown for other in PALETTE if other != color) == (total > coloured)


def test_the_instruction_goes_with_every_sub_question() -> None:
    source = PuzzlePrompts(mixture=[{"kind": "count_shapes", "level": 2, "size": 48, "checklist": True}], number=3)  # type: ignore[list-item]
    for prompt in source.read():
        assert len(sub_questions(prompt)) == 5
        assert all(
            one.text.endswith(source.instruction) and one.media[0].shape == (48, 48, 3) for one in sub_questions(prompt)
        )
    plain = PuzzlePrompts(mixture=[{"kind": "count_shapes", "level": 2, "size": 48}], number=3)  # type: ignore[list-item]
    assert all("checklist" not in prompt.meta for prompt in plain.read())


# ---- in a config

CONFIG = """
policy: {name: tiny_qwen3vl}
stages:
  rl:
    kind: rl
    steps: 1
    prompts: {name: jsonl, path: prompts.jsonl}
    prompts_per_step: 2
    group_size: 2
    rollout: {max_new_tokens: 4}
    rewards: {right: {name: number}}
    objective:
      advantage: {name: group, scale: group}
      shaping: [{name: checklist_gate, accuracy: right}]
    curriculum: {checklist: {questions: 1}}
    optimizer: {lr: 1e-3}
"""
LINE = '{"text": "How many?", "id": "ID", "target": 1, "meta": META}\n'
GOOD = '{"checklist": [{"question": "Red ones?", "answer": 1}]}'


def write(folder: Path, *metas: str) -> Path:
    (folder / "prompts.jsonl").write_text(
        "".join(LINE.replace("ID", str(k)).replace("META", m) for k, m in enumerate(metas))
    )
    (folder / "config.yaml").write_text(CONFIG)
    return folder / "config.yaml"


def told(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(str(path), overrides)
    return str(caught.value)


def test_a_config_asks_and_gates(tmp_path: Path) -> None:
    resolved = load(str(write(tmp_path, "{}", GOOD)))
    section = resolved.stages[0].section
    assert section.curriculum.checklist == ChecklistSection(questions=1, group_size=4)  # type: ignore[attr-defined]
    assert resolved.stages[0].objective.shaping == (ChecklistGate(accuracy="right"),)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("curriculum.checklist=null", "shaping.0: checklist_gate reads the answers to sub-questions, and none are asked; add "
         "curriculum.checklist={questions: 2, group_size: 4}"),
        ("objective.shaping=[]", "curriculum.checklist: nothing reads the answers to the sub-questions; add {name: checklist_gate} to "
         "objective.shaping (threshold: 0 only trains them)"),
        ("objective.shaping.0.accuracy=rihgt", "shaping.0: reads a reward 'rihgt', which this stage does not have (it has: right)"),
        ("curriculum.checklist.group_size=1", "curriculum.checklist.group_size=1: got 1; input should be greater than or equal to 2"),
        ("objective.combine=advantages", "shaping checklistgate reads the one advantage of a sample, which combine: advantages has not"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(override: str, message: str, tmp_path: Path) -> None:
    lines = told(write(tmp_path, GOOD, GOOD), f"stages.rl.{override}").splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_prompts_without_sub_questions_and_broken_ones_are_named(tmp_path: Path) -> None:
    assert "none of the 2 prompts has sub-questions" in told(write(tmp_path, "{}", "{}"))
    broken = write(tmp_path, GOOD, '{"checklist": [{"question": "Red ones?"}]}')
    assert "prompt '1': meta.checklist[0] has no answer" in told(broken)


def test_a_policy_that_draws_is_refused(tmp_path: Path) -> None:
    found = told(
        write(tmp_path, GOOD, GOOD),
        "policy.name=tiny_sd3",
        "stages.rl.rollout={num_steps: 4, sampler: {kind: flow_sde, level: 0.7}}",
    )
    assert (
        "curriculum.checklist: sub-questions are answered with text, and TinySD3 writes none; use a policy that writes"
        in found
    )


def test_surrogates_of_whole_groups_are_refused(tmp_path: Path) -> None:
    found = told(
        write(tmp_path, GOOD, GOOD),
        "policy.name=tiny_sd3",
        "stages.rl.rollout={num_steps: 4, sampler: {kind: ode}}",
        "stages.rl.objective.surrogate={name: dgpo, times: 2}",
    )
    assert (
        "surrogate dgpo needs groups that divide into updates and processes, and the number of sub-questions" in found
    )


def test_an_accuracy_that_failed_on_all_answers_is_unknown_and_no_mistake() -> None:
    """The failure budget decides about failures; the gate then knows nothing of the prompt."""
    parent = np.array([-1, -1, 0, 0])
    values = np.array([[1.0, 1.0], [0.0, 0.0], [0.0, np.nan], [0.0, np.nan]])
    failed = np.array([[False, False]] * 2 + [[False, True]] * 2)
    scored = Scored(
        values[:, 0], np.array([0, 0, 1, 1]), values, np.array([1.0, 0.0]), names=("form", "right"), parent=parent,
        failed=failed, scores=values,
    )  # fmt: skip
    gate = ChecklistGate(accuracy="right")
    np.testing.assert_array_equal(gate(np.array([1.0, -1.0, 0.0, 0.0]), scored), [1.0, -1.0, 0.0, 0.0])
    assert gate.metrics(scored)["checklist/unknown"] == 1.0
    with pytest.raises(UserError, match="scores none of the answers"):
        gate(np.zeros(4), replace(scored, failed=np.zeros((4, 2), dtype=bool)))


def test_the_sub_questions_of_all_prompts_are_looked_at() -> None:
    prompts = [
        Prompt(str(number), "?", meta={"checklist": [{"question": "how many?", "answer": "1", "type": kind}]})
        for number, kind in enumerate(("count", "colour"))
    ]
    assert [prompt.meta["type"] for prompt in check_checklists(prompts)] == ["count", "colour"]
    plain = [Prompt(f"plain {number}", "?") for number in range(3)]
    assert [prompt.id for prompt in check_checklists([*plain, *prompts], look_at=2)] == ["0/checklist/0"]
