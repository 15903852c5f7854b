"""What is measured of answers after their reasoning, against a loop: one text at a time, one prefix at a time, float64."""

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


def log_probs(policy: TinyQwen3VL, prompt: Prompt, answer: list[int]) -> list[float]:
    """Of every token after the prompt and the tokens before it, by one plain call of the model each."""
    encoded = policy.encoder.encode(prompt)
    found = []
    for k, token in enumerate(answer):
        ids = torch.cat([encoded.input_ids, torch.tensor(answer[:k], dtype=torch.int64)])[None]
        kinds = torch.cat([encoded.kinds, torch.zeros(k, dtype=torch.int64)])[None]
        policy.model.model.rope_deltas = None
        with torch.no_grad():
            logits = policy.model(input_ids=ids, mm_token_type_ids=kinds, use_cache=False, **encoded.media).logits
        scaled = (logits[0, -1].double() / TEMPERATURE).tolist()
        most = max(scaled)
        found.append(scaled[token] - most - math.log(sum(math.exp(one - most) for one in scaled)))
    return found


def inside(policy: TinyQwen3VL, answer: list[int], span: tuple[int, int], whole: bool) -> list[int]:
    """Places of the tokens that hold a character of `span`, or of those all of whose characters are in it."""
    found = []
    for k in range(len(answer)):
        start, end = (len(policy.encoder.decode(torch.tensor(answer[:j], dtype=torch.int64))) for j in (k, k + 1))
        characters = set(range(start, end))
        wanted = set(range(*span))
        if characters and (characters <= wanted if whole else characters & wanted):
            found.append(k)
    return found


def spans(text: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Reasoning and answer of these texts, without the blanks around them."""
    start, end = text.rindex("<answer>") + len("<answer>"), text.rindex("</answer>")
    first, last = (7, text.index("</think>")) if text.startswith("<think>") else (0, text.rindex("<answer>"))
    found = []
    for a, b in ((first, last), (start, end)):
        while text[a] == " ":
            a += 1
        while text[b - 1] == " ":
            b -= 1
        found.append((a, b))
    return found[0], found[1]


@pytest.mark.parametrize("scoring", ["packed", "padded"])
def test_consistency_and_support(scoring: str) -> None:
    policy = TinyQwen3VL(scoring=scoring)
    policy.load("cpu")
    policy.prepare(VlmTrainSpec(), False)
    policy.keep_slow()
    picture = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    prompts = [Prompt("a", "Where is it?", (picture,)), Prompt("b", "How many?")]
    rollout = policy.given([Sample(prompts[i // 2], text=text) for i, text in enumerate(TEXTS)])
    rollout.payload.temperature = TEMPERATURE
    consistency, rac = (policy.measure(name, rollout, 3) for name in ("consistency", "rac"))
    assert rac.sum() not in (0, 4), "both verdicts occur"
    for row, text in enumerate(TEXTS):
        answer, prompt = rollout.payload.answers[row].tolist(), prompts[row // 2]
        reasoning_of, answer_of = spans(text)
        places = inside(policy, answer, answer_of, whole=False)
        full = [log_probs(policy, prompt, answer)[k] for k in places]
        assert float(consistency[row]) == pytest.approx(sum(math.exp(v) for v in full) / len(full), rel=1e-4)
        cut = set(inside(policy, answer, reasoning_of, whole=True))
        short = [token for k, token in enumerate(answer) if k not in cut]
        alone = [log_probs(policy, prompt, short)[k - len(cut)] for k in places]
        assert bool(rac[row]) == (sum(full) / len(full) > sum(alone) / len(alone))
