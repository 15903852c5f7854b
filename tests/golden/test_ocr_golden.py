"""The OCR reward against numbers of other implementations; every case that differs is named with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmrl.rewards.visual.ocr import quoted, written

CASES = json.loads((Path(__file__).parent / "data" / "ocr_reward.json").read_text())["cases"]
DIFFERS = {
    'two signs "Hi" and "Bye"': "the original reads the first quoted text only; here both count",
    "a sign without quotes": "the original raises IndexError; here the prompt is named in a failure",
    'empty ""': "the original divides by zero; here an empty quote is no text",
}


def flow_grpo(lines: list[str] | None, prompt: str) -> float:
    return written("\n".join(lines or []), quoted(prompt)[0])


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_ocr_reward(case: dict[str, Any]) -> None:
    given = case["inputs"]
    if case["fn"].startswith("verl_omni._levenshtein"):
        read, truth = given
        if not truth:  # undefined here: there is nothing to write
            with pytest.raises(ValueError, match="empty"):
                written(read, truth)
            return
        assert written(read, truth) == pytest.approx(case["outputs"])
        return
    if case["fn"] == "flow_grpo.OcrScorer":
        prompt = given["prompt"]
        if given["recognised_lines"] == "__raise__":
            return  # an engine that fails is a zero there and a failure here, see test_visual_rewards.py
        if prompt in DIFFERS:
            assert len(quoted(prompt)) != 1
            return
        assert flow_grpo(given["recognised_lines"], prompt) == pytest.approx(case["outputs"])
        return
    raise AssertionError(f"no test for {case['fn']}")
