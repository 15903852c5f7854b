"""Which tokens are an answer and which its reasoning, and what is measured of them on the tiny Qwen3-VL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from mmrl.advantage.care import GrpoCare
from mmrl.advantage.group import DrAdvantage
from mmrl.advantage.rac import Rac
from mmrl.advantage.types import Following, Scored
from mmrl.distributed import Group
from mmrl.errors import UserError
from mmrl.evaluate import evaluate
from mmrl.objective.objective import Objective
from mmrl.objective.wants import lacking
from mmrl.reward import Reward, RewardSet
from mmrl.rollout import Draw, Prompt, Rollout, Sample
from mmrl.vlm.consistency import MEASURES, answer_span, reasoning_span, supported, tokens_of
from mmrl.vlm.models import TinyQwen3VL
from mmrl.vlm.plan import VlmSampling
from mmrl.vlm.train import VlmTrainSpec


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>Two red.</think><answer> 2 </answer>", "Two red.", "2"),
        ("<think>\nTwo <answer>3</answer>\n</think>\n<answer>2</answer>", "Two <answer>3</answer>", "2"),
        ("It is two, so <answer>2</answer>", "It is two, so", "2"),
        ("thought without a beginning</think><ANSWER>2</ANSWER>", "thought without a beginning", "2"),
        ("<think></think><answer>2</answer>", None, "2"),
        ("<think>One.</think><answer>1</answer> or <answer>2</answer>", "One.", "2"),
        ("<think>One.</think><answer> </answer>", "One.", None),
        ("<think>One.</think><answer>1</answer><answer>2", "One.", None),
        ("<think>One. <answer>1</answer>", None, None),
        ("nothing at all", None, None),
    ],
)
def test_spans(text: str, reasoning: str | None, answer: str | None) -> None:
    def cut(span: tuple[int, int] | None) -> str | None:
        return None if span is None else text[slice(*span)]

    assert cut(answer_span(text)) == answer
    if answer is not None:
        assert cut(reasoning_span(text)) == reasoning


def test_tokens_that_hold_a_character_of_the_answer() -> None:
    pieces = ["<thi", "nk> ", "so", "", ".</", "think>", "<answer>", "", "4", "2</ans", "wer>"]
    text = "".join(pieces)

    def decode(tokens: Sequence[int]) -> str:
        return "".join(pieces[token] for token in tokens)

    span = answer_span(text)
    assert span is not None
    assert pieces[tokens_of(span, range(len(pieces)), decode)] == ["4", "2</ans"]


# ---- on a model

TEXTS = (
    "<think>The red square is left.</think><answer>left</answer>",
    "<think></think><answer>left</answer>",
    "<think>The red square is left.</think><answer>left",
    "It is right: <answer>top right</answer>",
)


def policy_of(spec: VlmTrainSpec | None = None) -> TinyQwen3VL:
    policy = TinyQwen3VL()
    policy.load("cpu")
    policy.prepare(spec or VlmTrainSpec(), False)
    policy.keep_slow()
    return policy


def given(policy: TinyQwen3VL, texts: Sequence[str] = TEXTS) -> Rollout:
    picture = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    prompts = [Prompt("a", "Where is the red square?", (picture,)), Prompt("b", "Left or right?")]
    return policy.given([Sample(prompts[i % 2], text=text) for i, text in enumerate(texts)])


def nudge(policy: TinyQwen3VL, size: float = 0.05) -> None:
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter += size * torch.randn(parameter.shape, generator=g)


def test_what_cannot_be_measured_is_nan() -> None:
    policy = policy_of()
    rollout = given(policy)
    assert policy.measure("consistency", rollout, 3).isnan().tolist() == [False, False, True, False]
    verdict = policy.measure("rac", rollout, 3)
    assert verdict.isnan().tolist() == [False, True, True, False] and set(verdict[[0, 3]].tolist()) <= {0.0, 1.0}
    assert set(MEASURES) < set(policy.offers)


def test_consistency_is_that_of_the_slow_copy_and_rac_that_of_the_policy() -> None:
    policy = policy_of()
    rollout = given(policy)
    before = {name: policy.measure(name, rollout, 8) for name in ("consistency", "rac")}
    nudge(policy)
    assert torch.equal(policy.measure("consistency", rollout, 8).nan_to_num(), before["consistency"].nan_to_num())
    policy.follow(0.0)
    after = policy.measure("consistency", rollout, 8)
    assert (after - before["consistency"])[[0, 1, 3]].abs().min() > 1e-4


def taught(texts: Sequence[str]) -> TinyQwen3VL:
    """A model that has learned these answers to "?"."""
    policy = policy_of()
    samples = [Sample(Prompt("p", "?"), text=text) for text in texts]
    optimizer = torch.optim.Adam(list(policy.trainable().values()), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        policy.supervised_loss(samples, [0] * len(samples)).mean().backward()
        optimizer.step()
    return policy


WORDS = ("left", "right", "top", "bottom")
PAIRS = [(said, word) for word in WORDS for said in (word, WORDS[WORDS.index(word) - 1])]


def verdicts(policy: TinyQwen3VL) -> list[float]:
    """Of answers after a reasoning that names them, or another word."""
    texts = [f"<think>{said}</think><answer>{word}</answer>" for said, word in PAIRS]
    return supported(policy, policy.given([Sample(Prompt("p", "?"), text=text) for text in texts]), 8).tolist()


def test_an_answer_is_supported_by_reasoning_that_leads_to_it() -> None:
    """The verdict follows what stands in the reasoning, for a model that answers what it said."""
    policy = taught([f"<think>{w}</think><answer>{w}</answer>" for w in WORDS])
    assert verdicts(policy) == [1.0, 0.0] * 4
    more = policy.given([Sample(Prompt("p", "?"), text="<think>bottom</think><answer>bottom3</answer>")])
    assert supported(policy, more, 8).tolist() == [0.0], "one token that would not have come is enough"


def test_an_answer_that_needs_no_reasoning_is_not_supported_by_it() -> None:
    """A model that says "top" whatever it thought: only that answer would come out again."""
    policy = taught([f"<think>{w}</think><answer>top</answer>" for w in WORDS])
    assert verdicts(policy) == [float(word == "top") for _, word in PAIRS]


def test_the_picture_is_hidden_from_the_verdict_and_seen_by_consistency() -> None:
    policy = policy_of()
    asked: list[tuple[str, str]] = []

    class Watched(TinyQwen3VL):
        def replay(self, rollout: Rollout, chunk: Any, view: str = "original", model: Any = "policy") -> Any:
            asked.append((view, model))
            return policy.replay(rollout, chunk, view, model)

        @property
        def encoder(self) -> Any:
            return policy.encoder

    rollout = given(policy)
    Watched().measure("rac", rollout, 8)
    Watched().measure("consistency", rollout, 8)
    assert asked == [("blank", "policy"), ("original", "ema")]


# ---- in an objective, in evaluation


def test_an_objective_asks_for_what_its_shapings_need() -> None:
    plain, care = Objective(DrAdvantage()), Objective(DrAdvantage(), shaping=(GrpoCare(),))
    assert plain.follows is None and plain.measures(0) == () and plain.evaluates == ()
    assert care.follows == Following(0.995, 10) and care.measures(3) == ("consistency",)
    assert Objective(DrAdvantage(), shaping=(GrpoCare(weight=0),)).follows is None
    often, seldom = Rac(), Rac(every=5)
    both = Objective(DrAdvantage(), shaping=(GrpoCare(), seldom))
    assert both.measures(0) == ("consistency", "rac") and both.measures(4) == ("consistency",)
    assert both.evaluates == ("rac",) and Objective(DrAdvantage(), shaping=(often,)).measures(4) == ("rac",)
    assert lacking(both, TinyQwen3VL()) == []
    with pytest.raises(ValueError, match="every must be 1, got 2"):
        Rac(weight=0.1, every=2)
    with pytest.raises(UserError, match="follow them in different ways"):
        Objective(DrAdvantage(), shaping=(GrpoCare(), GrpoCare(every=3)))


class Short(Reward):
    """1 for answers of at most a number of characters."""

    most: int = 60

    def score(self, samples: Sequence[Sample]) -> list[float]:
        return [float(len(sample.text or "") <= self.most) for sample in samples]


class Fixed(TinyQwen3VL):
    """Writes TEXTS and an empty text in turn."""

    def generate(self, draws: Sequence[Draw], plan: Any, view: str = "original") -> list[Sample]:
        return [Sample(draw.prompt, text=(*TEXTS, "")[draw.group % 5]) for draw in draws]


def test_evaluation_measures_what_shapings_want_and_nothing_else() -> None:
    policy = Fixed()
    policy.load("cpu")
    policy.prepare(VlmTrainSpec(), False)
    draws = [Draw(Prompt(str(i), "Where is it?"), i, 0, i, i) for i in range(10)]
    rewards = RewardSet({"short": (Short(most=50), 1.0), "other": (Short(), 1.0)}, held_out=["other"])
    group = Group("cpu", None, None)

    def found(*shaping: Any) -> dict[str, float]:
        objective = Objective(DrAdvantage(), shaping=shaping)
        return evaluate(policy, VlmSampling(), draws, rewards, 0, 4, group, objective=objective).metrics

    assert not any(name.startswith("measured") for name in found(GrpoCare()))
    metrics = found(Rac())
    texts = [*TEXTS, "", *TEXTS, ""]
    rollout = policy.given([Sample(draw.prompt, text=text) for draw, text in zip(draws, texts, strict=True) if text])
    verdict = policy.measure("rac", rollout, 8)
    known = verdict[~verdict.isnan()]
    assert len(known) == 4 and metrics["measured/rac"] == pytest.approx(float(known.mean()))
    right = [float(v) for v, text in zip(verdict, [t for t in texts if t], strict=True) if len(text) <= 50 and v == v]
    assert len(right) == 2 and metrics["measured/rac/right"] == pytest.approx(sum(right) / 2)


def test_rac_rewards_right_answers_that_are_supported() -> None:
    extra = {"rac": np.array([1.0, 0.0, 1.0, np.nan, 1.0])}
    scored = Scored(np.array([1.0, 1.0, 0.0, 1.0, np.nan]), np.zeros(5, dtype=np.int64), extra=extra)
    assert Rac(weight=0.5).before(scored).reward[:4].tolist() == [1.5, 1.0, 0.0, 1.0]
    assert Rac().before(scored) is scored and Rac().metrics(scored) == {"measured/rac/right": 0.5}
