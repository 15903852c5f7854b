"""Every case of the reward goldens is matched by a named test or left out by name with the reason; here are those that no other
test of this folder reads."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmrl.advantage.combine import rescaled, summed
from mmrl.advantage.group import GroupAdvantage
from mmrl.advantage.types import Scored
from mmrl.components import build
from mmrl.config import load
from mmrl.errors import ConfigError
from mmrl.objective.objective import Objective
from mmrl.reward import RewardSet
from mmrl.reward.pairwise import PairwiseReward, Verdict
from mmrl.rewards.judge.pairs import SHARE
from mmrl.rewards.judge.verdict import answered_winner, flex, winner
from mmrl.rewards.verifiable.mathematics import MathReward
from mmrl.rollout import FAILED, Prompt, Sample
from mmrl.statistics import best_at_k, pass_all_k, pass_at_k

DATA = Path(__file__).parent / "data"
HERE = "test_rewards_golden_cases"
VERIFIABLE = "test_verifiable_golden"
MATCHED: dict[str, dict[str, str]] = {
    "aesthetic_imagereward": {
        "aesthetic MLP": "test_preference_golden.test_the_heads",
        "ImageReward MLP + normalisation": "test_preference_golden.test_the_heads",
        "ImageReward BLIP encoders, tiny sizes (own vit.py/med.py; equal to transformers BlipVisionModel + BlipTextModel with is_decoder=False to 0.0)": "test_preference_golden.test_the_encoders_of_imagereward_under_their_published_names",
    },
    "composition": {
        "compute_weighted_advantages": f"{HERE}.test_several_rewards_as_one_advantage",
        "parse_reward_spec": f"{HERE}.test_rewards_and_weights_of_a_config",
    },
    "geneval": {
        "compute_iou": "test_geneval_golden.test_geneval",
        "relative_position(a to b)": "test_geneval_golden.test_geneval",
        "evaluate / evaluate_reward": "test_geneval_golden.test_geneval",
    },
    "grounding__eval": {
        "charades.extract_time": f"{VERIFIABLE}.test_times",
        "charades.iou": f"{VERIFIABLE}.test_times",
        "_temporal_grounding_compute_metrics": f"{VERIFIABLE}.test_times",
        "refcoco.parse_float_sequence_within": f"{VERIFIABLE}.test_boxes_of_text",
        "refcoco.compute_iou": f"{VERIFIABLE}.test_box_iou",
        "refcoco.compute_accuracy": f"{VERIFIABLE}.test_box_iou",
        "refcoco.compute_center_accuracy": f"{VERIFIABLE}.test_box_iou",
    },
    "ocr_reward": {
        "verl_omni._levenshtein_score(text,ground_truth)": "test_ocr_golden.test_ocr_reward",
        "flow_grpo.OcrScorer": "test_ocr_golden.test_ocr_reward",
    },
    "pass_at_k": {
        "pass@k": f"{HERE}.test_pass_at_k",
        "pass^k (all k right)": f"{HERE}.test_pass_at_k",
        "best@k of unequal scores (expected maximum of k draws without replacement)": f"{HERE}.test_pass_at_k",
    },
    "unified_reward": {
        "extract_normalized_rewards": "test_judge_golden.test_three_axes",
        "verl_omni parse+aggregate": "test_judge_golden.test_three_axes",
        "flow_grpo Final Score regex, /5": "test_judge_golden.test_the_final_score",
        "flex _normalize_winner": "test_judge_golden.test_winners",
        "edit _parse_scores": "test_judge_golden.test_edit_scores",
        "think pairwise win rate": f"{HERE}.test_win_rates",
        "edit pairwise win rate": f"{HERE}.test_win_rates",
        "flex pairwise win rate": f"{HERE}.test_win_rates",
    },
    "verifiable__math_answers": {
        "mathruler.extract_boxed_content": f"{VERIFIABLE}.test_boxes_in_text",
        "mathruler.grade_answer(given,truth)": f"{VERIFIABLE}.test_math",
        "math_verify.verify(parse($truth$),parse($given$))": f"{VERIFIABLE}.test_math",
        "trl accuracy_reward rule(content,solution)": f"{VERIFIABLE}.test_math",
        "easyr1.math(response,truth) format_weight 0.1": f"{VERIFIABLE}.test_math",
        "easyr1.r1v(response,truth) format_weight 0.5": f"{VERIFIABLE}.test_math",
        "dapo.accuracy_reward": f"{VERIFIABLE}.test_math",
        "soft_overlong_punishment(len,max,buffer)": f"{VERIFIABLE}.test_overlong",
        "dapo.normalize_final_answer": f"{HERE}.test_normal_forms_of_answers",
    },
    "verifiable__visual_jigsaw": {
        "compute_score": f"{VERIFIABLE}.test_visual_jigsaw_as_a_weighted_sum",
        "compute_score_exact_match": f"{VERIFIABLE}.test_visual_jigsaw_as_a_weighted_sum",
        "compute_score_anls": f"{VERIFIABLE}.test_visual_jigsaw_as_a_weighted_sum",
        "compute_score_relaxed_acc": f"{VERIFIABLE}.test_visual_jigsaw_as_a_weighted_sum",
        "check_format": f"{VERIFIABLE}.test_formats",
        "has_excessive_repetition": f"{VERIFIABLE}.test_repetition",
        "anls": f"{VERIFIABLE}.test_text_similarity",
        "relaxed_correctness": f"{VERIFIABLE}.test_relaxed",
        "cal_math_reward": f"{HERE}.test_mathematics_of_other_recipes",
    },
    "verifiable__vlm_r1": {
        "extract_choice": f"{VERIFIABLE}.test_choices",
        "mcq_reward": f"{VERIFIABLE}.test_choices",
        "yes_no_reward": f"{VERIFIABLE}.test_yes_and_no",
        "clean_text": f"{VERIFIABLE}.test_words",
        "all_match_reward": f"{VERIFIABLE}.test_words",
        "default_accuracy_reward": f"{HERE}.test_mathematics_of_other_recipes",
        "numeric_reward": f"{VERIFIABLE}.test_numbers",
        "iou": f"{VERIFIABLE}.test_box_iou",
        "detection_score": f"{VERIFIABLE}.test_detection_orders_replies_alike",
        "repetition_reward": f"{VERIFIABLE}.test_repetition",
        "format_reward": f"{VERIFIABLE}.test_formats",
        "cosine_reward": f"{VERIFIABLE}.test_cosine",
    },
}
LEFT_OUT: dict[tuple[str, str, str], str] = {
    (
        "geneval",
        "summary_scores",
        "*",
    ): "the benchmark's table of results; evaluations here are means per reward and tag",
    (
        "grounding__eval",
        "refcoco.compute_center_accuracy",
        "[[0, 0, 0, 0], [0.1, 0.1, 0.4, 0.4]]",
    ): "a truth of four zeros stands for a missing one there; here such a target is an error in the data",
    (
        "ocr_reward",
        "flow_grpo.OcrScorer",
        '{"recognised_lines": "__raise__", "prompt": "a sign \\"Hi\\""}',
    ): "an engine that raises is a 0 there; here the sample has failed",
}
"""(file, function, inputs or * for all of them). A case that a test matches with another number is named in that test."""


def cases_of(file: str) -> list[dict[str, Any]]:
    return list(json.loads((DATA / f"{file}.json").read_text())["cases"])


def cases(file: str, fn: str) -> Iterator[tuple[Any, Any]]:
    found = [(case["inputs"], case["outputs"]) for case in cases_of(file) if case["fn"].startswith(fn)]
    assert found, fn
    return iter(found)


def key_of(case: dict[str, Any]) -> str:
    return json.dumps(case.get("inputs"))


@pytest.mark.parametrize("file", MATCHED)
def test_every_case_is_matched_or_named(file: str) -> None:
    named = {(fn, key) for name, fn, key in LEFT_OUT if name == file}
    seen = {(case["fn"], key_of(case)) for case in cases_of(file)}
    whole = {fn for fn, key in named if key == "*"}
    assert {fn for fn, _ in seen} == set(MATCHED[file]) | whole and not whole & set(MATCHED[file])
    assert {pair for pair in named if pair[1] != "*"} <= seen, "a case is left out that the file does not have"


@pytest.mark.parametrize("where", sorted({test for tests in MATCHED.values() for test in tests.values()}))
def test_what_is_said_to_match_is_a_test(where: str) -> None:
    module, name = where.split(".")
    assert callable(getattr(importlib.import_module(module), name, None))


# ---- composition


@pytest.mark.parametrize("number", range(4))
def test_several_rewards_as_one_advantage(number: int) -> None:
    """Without groups the original standardises over the batch: all samples are one group here, which no rule of a config says of
    several prompts, as a reward is compared with those of its own prompt."""
    case = cases_of("composition")[number]
    inputs, params = case["inputs"], case["params"]
    components = np.stack([np.asarray(inputs[name], dtype=np.float64) for name in params["weights"]], axis=1)
    size = len(components)
    group = np.arange(size) // params["num_generations"] if params["use_group"] else np.zeros(size, dtype=np.int64)
    weights = np.array(list(params["weights"].values()))
    scored = Scored(components @ weights, group, components=components, weights=weights, names=tuple(params["weights"]))
    rule = GroupAdvantage(scale="group", ddof=1, eps=1e-8)
    for column, name in enumerate(params["weights"]):
        own = rule(Scored(components[:, column], group))
        np.testing.assert_allclose(own, case["outputs"]["per_reward"][name], rtol=2e-5, atol=2e-6)
    total, _ = summed(scored, rule, False)
    found = rescaled(total, scored.scorable) if params["apply_gdpo"] else total
    composed = Objective(rule, combine="advantages", rescale=params["apply_gdpo"])
    np.testing.assert_array_equal(composed.advantages(scored), found)
    np.testing.assert_allclose(found, case["outputs"]["advantages"], rtol=2e-5, atol=2e-6)
    assert not any(rule(Scored(components[:, 0], group))[4:]) or not params["use_group"]


CONFIG = """
policy: {name: tiny_sd3}
stages:
  rl:
    kind: rl
    steps: 1
    prompts: {name: shapes, split: train}
    prompts_per_step: 2
    group_size: 4
    rollout: {num_steps: 4, sampler: {kind: flow_sde, level: 0.7}}
    rewards: REWARDS
    objective: {advantage: {name: group, scale: group}}
    optimizer: {lr: 1e-4}
"""


def test_rewards_and_weights_of_a_config(tmp_path: Path) -> None:
    """The original reads one text for names and weights; here it is a mapping. What it makes of `["a","b"]`, two rewards with
    brackets in their names, and of an empty text, no reward, is refused here."""
    for (text,), wanted in cases("composition", "parse_reward_spec"):
        path = tmp_path / "config.yaml"
        spec = {name: {"name": "shapes", "weight": weight} for name, weight in wanted.items()}
        path.write_text(CONFIG.replace("REWARDS", text if text.startswith("[") else json.dumps(spec)))
        if not wanted or text.startswith("["):
            with pytest.raises(ConfigError, match="rewards"):
                load(str(path))
            continue
        rewards = RewardSet(load(str(path)).stages[0].rewards)
        assert dict(zip(rewards.names, rewards.weights, strict=True)) == wanted


# ---- pass@k


def test_pass_at_k() -> None:
    for given, wanted in cases("pass_at_k", "pass@k"):
        if wanted is None:
            with pytest.raises(ValueError, match="k is 11 and there are 10"):
                pass_at_k(**given)
        else:
            assert pass_at_k(**given) == pytest.approx(wanted, rel=1e-12)
    for given, wanted in cases("pass_at_k", "pass^k"):
        assert pass_all_k(**given) == pytest.approx(wanted, rel=1e-12)
    for given, wanted in cases("pass_at_k", "best@k"):
        assert best_at_k(given["scores"], given["k"]) == pytest.approx(wanted, rel=1e-12)


# ---- win rates


class Recorded(PairwiseReward):
    """Verdicts by the texts of the two samples."""

    def compare(self, pairs: Sequence[tuple[Sample, Sample]]) -> list[Verdict]:
        return [pairs[k][0].prompt.meta["table"][pairs[k][0].text, pairs[k][1].text] for k in range(len(pairs))]


def win_rates(table: dict[tuple[int, int], Verdict], unreadable: str = "half") -> list[float]:
    """Of comparisons in one order, as the originals make them."""
    size = 1 + max(max(pair) for pair in table)
    prompt = Prompt("p", "q", meta={"table": {(str(i), str(j)): value for (i, j), value in table.items()}})
    reward = Recorded(orders="one", unreadable=unreadable)  # type: ignore[arg-type]
    return [float(one) for one in reward.score([Sample(prompt, text=str(row)) for row in range(size)])]


def read(case: Any, reader: Any) -> dict[tuple[int, int], Verdict]:
    return {(one["first_index"], one["second_index"]): reader(one["model_output"]) for one in case}


def test_win_rates() -> None:
    ((think, wanted),) = cases("unified_reward", "think pairwise")
    table = read(think, lambda text: None if (who := answered_winner(text)) is None else SHARE[who])
    assert table[2, 3] == 1.0  # "image 1": the original is case-sensitive and makes it half a win each
    assert win_rates(table | {(2, 3): 0.5}) == pytest.approx(wanted["overall_reward"], abs=5e-4)
    assert win_rates(table) == pytest.approx([0.5, 0.5, 0.5 + 1 / 3, 1 / 6])
    ((edit, wanted),) = cases("unified_reward", "edit pairwise")
    table = read(edit, lambda text: None if (who := winner(text)) is None else SHARE[who])
    assert win_rates(table) == pytest.approx(wanted["overall_reward"])
    ((by_parts, wanted),) = cases("unified_reward", "flex pairwise")
    read_parts = {(one["first_index"], one["second_index"]): flex(one["model_output"]) for one in by_parts}
    overall = {pair: None if found is None else SHARE[found[0]] for pair, found in read_parts.items()}
    assert win_rates(overall) == pytest.approx(wanted["dims"]["overall_reward"])
    # the original takes win rates per category and leaves what it cannot read out of these (but not out of the overall one);
    # here a pair has one verdict, half of it from the categories, so that only sample 0, whose pairs are all read, is the same
    mixed: dict[tuple[int, int], Verdict] = {
        pair: None
        if found is None
        else 0.5 * SHARE[found[0]] + 0.5 * float(np.mean([SHARE[one] for one in found[1].values()]))
        for pair, found in read_parts.items()
    }
    rates = win_rates(mixed)
    assert rates[0] == pytest.approx(wanted["rewards"][0])
    assert (
        rates[1:] == pytest.approx([1 / 3, 2 / 3])
        and np.argsort(rates).tolist() == np.argsort(wanted["rewards"]).tolist()
    )


# ---- mathematics


@pytest.fixture(scope="module")
def judge() -> Iterator[MathReward]:
    pytest.importorskip("math_verify")
    reward = build("reward", {"name": "math", "limit": 30.0})
    yield reward
    if reward._pool is not None:
        reward._pool.close()


def value(reward: MathReward, text: str, truth: str) -> float:
    scores = RewardSet({"r": (reward, 1.0)}).score([Sample(Prompt("p", "q", target=truth), text=text)])
    assert scores.status[0, 0] != FAILED, scores.messages
    return float(scores.values[0, 0])


def test_normal_forms_of_answers(judge: MathReward) -> None:
    """Answers are compared here, not rewritten: what the original rewrites into the truth is right. Differs: articles count."""
    for (text,), normal in cases("verifiable__math_answers", "dapo.normalize"):
        assert value(judge, f"<answer>{text}</answer>", normal) == (0.0 if text == "an apple" else 1.0), text


def test_mathematics_of_other_recipes(judge: MathReward) -> None:
    """Differs: equal values in another form are right, as are equations with the truth on one side; words earn no share for
    looking alike."""
    other = {(r"$\frac{1}{2}$", "$0.5$"): 1.0, ("1/2", "0.5"): 1.0, ("$x=3$", "$3$"): 1.0}
    for (text, truth), output in cases("verifiable__visual_jigsaw", "cal_math_reward"):
        assert value(judge, f"<answer>{text}</answer>", truth) == other.get((text, truth), output), text
    for (text, truth), output in cases("verifiable__vlm_r1", "default_accuracy"):
        gold = truth.removeprefix("<answer>").removesuffix("</answer>")
        assert value(judge, text, gold) == float(output == 1.0), text
