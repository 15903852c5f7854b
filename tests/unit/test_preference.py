"""Preference stages: losses against loops, the gradient of a pair against its definition, one stage through the trainer."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from mmrl.config.resolve import load
from mmrl.errors import ConfigError
from mmrl.objective.preference import margin, preference_loss
from mmrl.rollout import Prompt, Sample
from mmrl.vlm.models import TinyQwen3VL


def naive(m: float, beta: float, loss: str, smoothing: float) -> float:
    if loss == "ipo":
        return (m - 1 / (2 * beta)) ** 2
    if loss == "hinge":
        return max(0.0, 1 - beta * m)
    p = 1 / (1 + math.exp(-beta * m))
    return -(1 - smoothing) * math.log(p) - smoothing * math.log(1 - p)


@pytest.mark.parametrize(("loss", "smoothing"), [("dpo", 0.0), ("dpo", 0.1), ("ipo", 0.0), ("hinge", 0.0)])
def test_against_a_loop(loss: str, smoothing: float) -> None:
    torch.manual_seed(0)
    new, reference = torch.randn(2, 7, dtype=torch.float64) * 9, torch.randn(2, 7, dtype=torch.float64) * 9
    margins = margin(new[0], new[1], reference[0], reference[1])
    wanted = [
        naive(float((new[0, i] - reference[0, i]) - (new[1, i] - reference[1, i])), 0.3, loss, smoothing)
        for i in range(7)
    ]
    chosen: object = loss
    found = preference_loss(margins, 0.3, chosen, smoothing)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-10, atol=1e-12)


def test_at_the_reference_dpo_is_log_2_and_pushes_both_ways() -> None:
    chosen, rejected = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    loss = preference_loss(margin(chosen, rejected, torch.zeros(1), torch.zeros(1)), 0.1)
    loss.sum().backward()
    assert float(loss.detach()) == pytest.approx(math.log(2))
    assert chosen.grad is not None and rejected.grad is not None
    assert float(chosen.grad) == pytest.approx(-0.05) and float(rejected.grad) == pytest.approx(0.05)


def test_swapping_a_pair_turns_its_margin_round() -> None:
    a, b, ra, rb = torch.randn(4, 5).unbind(0)
    torch.testing.assert_close(margin(a, b, ra, rb), -margin(b, a, rb, ra))


def test_given_answers_are_scored_as_in_supervised_training() -> None:
    policy = TinyQwen3VL()
    policy.load("cpu")
    prompts = [Prompt("a", "How many red squares are there?"), Prompt("b", "Where is the dot?")]
    samples = [
        Sample(prompts[0], text="two"),
        Sample(prompts[0], text="a longer answer"),
        Sample(prompts[1], text="left"),
    ]
    given = policy.given(samples)
    assert given.group.tolist() == [0, 0, 1]
    (chunk,) = policy.chunks(given, given.mask, 3)
    with torch.no_grad():
        out = policy.replay(given, chunk)
        wanted = policy.supervised_loss(samples, [0, 0, 0])
    mask = chunk.take(given.mask)
    torch.testing.assert_close(-(out.log_prob * mask).sum(1) / mask.sum(1), wanted, rtol=1e-5, atol=1e-5)


def test_a_model_that_draws_has_no_preference_stage(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    config = tmp_path / "config.yaml"
    config.write_text(
        "policy: {name: tiny_sd3}\nstages:\n  dpo:\n    kind: preference\n    steps: 1\n    batch_size: 1\n"
        "    examples: {name: preference, path: pairs.jsonl}\n    optimizer: {lr: 1e-3}\n"
    )
    with pytest.raises(ConfigError, match=r"config\.yaml:4.*preference stage.*use a policy that writes text"):
        load(str(config))
