"""What is measured of answers after their reasoning, against a loop: one text and one token at a time, float64."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from mmrl.rollout import Prompt, Sample
from mmrl.vlm.models import TinyQwen3VL
from mmrl.vlm.train import VlmTrainSpec

TEMPERATURE = 0.7
TEXTS = (
    "<think>The red square is left of the star.</think><answer>left</answer>",
    "<think>There are 3 circles. </think>\n<answer> 3 </answer>",
    "It is turned by 90 degrees. <answer>180 degrees</answer>",
    "<think>Which frame comes first?</think><answer>A</answer> yes",
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def chances(policy: TinyQwen3VL, prompt: Prompt, answer: list[int], view: str) -> list[list[float]]:
    """Log-probs of the whole vocabulary before every token of an answer, by one plain call of the model each."""
    encoded = policy.encoder.encode(prompt, view)
    found = []
    for k in range(len(answer)):
        ids = torch.cat([encoded.input_ids, torch.tensor(answer[:k], dtype=torch.int64)])[None]
        kinds = torch.cat([encoded.kinds, torch.zeros(k, dtype=torch.int64)])[None]
        policy.model.model.rope_deltas = None
        with torch.no_grad():
            logits = policy.model(input_ids=ids, mm_token_type_ids=kinds, use_cache=False, **encoded.media).logits
        scaled = (logits[0, -1].double() / TEMPERATURE).tolist()
        most = max(scaled)
        total = math.log(sum(math.exp(one - most) for one in scaled))
        found.append([one - most - total for one in scaled])
    return found


def inside(policy: TinyQwen3VL, answer: list[int], span: tuple[int, int]) -> list[int]:
    """Places of the tokens that hold a character of `span`."""
    found = []
    for k in range(len(answer)):
        start, end = (len(policy.encoder.decode(torch.tensor(answer[:j], dtype=torch.int64))) for j in (k, k + 1))
        if set(range(start, end)) & set(range(*span)):
            found.append(k)
    return found


def answer_of(text: str) -> tuple[int, int]:
    """The answer of these texts, without the blanks around it."""
    start, end = text.rindex("<answer>") + len("<answer>"), text.rindex("</answer>")
    while text[start] == " ":
        start += 1
    while text[end - 1] == " ":
        end -= 1
    return start, end


@pytest.mark.parametrize("scoring", ["packed", "padded"])
def test_consistency_and_support(scoring: str) -> None:
    policy = TinyQwen3VL(scoring=scoring)
    policy.load("cpu")
    policy.prepare(VlmTrainSpec(), False)
    picture = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    prompts = [Prompt("a", "Where is it?", (picture,)), Prompt("b", "How many?")]
    samples = [Sample(prompts[i // 2], text=text) for i, text in enumerate(TEXTS)]
    optimizer = torch.optim.Adam(list(policy.trainable().values()), lr=3e-3)
    for _ in range(25):  # some of what it says is the likeliest then
        optimizer.zero_grad()
        policy.supervised_loss(samples[:3], [0] * 3).mean().backward()
        optimizer.step()
    policy.keep_slow()
    rollout = policy.given(samples)
    rollout.payload.temperature = TEMPERATURE
    consistency, rac = (policy.measure(name, rollout, 3) for name in ("consistency", "rac"))
    assert 0 < rac.sum() < 4, "both verdicts occur"
    for row, text in enumerate(TEXTS):
        answer, prompt = rollout.payload.answers[row].tolist(), prompts[row // 2]
        places = inside(policy, answer, answer_of(text))
        seeing, blind = (chances(policy, prompt, answer, view) for view in ("original", "blank"))
        mean = sum(math.exp(seeing[k][answer[k]]) for k in places) / len(places)
        assert float(consistency[row]) == pytest.approx(mean, rel=1e-3)
        assert bool(rac[row]) == all(blind[k][answer[k]] == max(blind[k]) for k in places)
