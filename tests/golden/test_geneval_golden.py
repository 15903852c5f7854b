"""GenEval's rule against numbers of the original and of the served version; every case that differs is named with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmrl.rewards.visual.geneval import Found, iou, judge, relations

CASES = json.loads((Path(__file__).parent / "data" / "geneval.json").read_text())["cases"]
SCORE_DIFFERS = {
    "single six times": "the served score has no floor: -4 for six of one",
    "count over": "the served score does not look at `exclude`",
    "count under": "here the exclude clause that holds is a check too",
    "colour, two cars": "the served score looks at colours only where the number is right; here they are a check of their own",
    "pos bad": "a wrong position counts as 0 and then as 1 in the served score",
}


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_geneval(case: dict[str, Any]) -> None:
    given, wanted = case["inputs"], case["outputs"]
    if case["fn"] == "compute_iou":
        assert iou(*map(tuple, given)) == pytest.approx(wanted)  # type: ignore[arg-type]
    elif case["fn"].startswith("relative_position"):
        found = relations(tuple(given["a"]), tuple(given["b"]), given["position_threshold"])
        assert sorted(found) == sorted(wanted)
    elif case["fn"].startswith("evaluate"):
        objects = given["detections (box,colour) sorted by confidence"]
        found = {kind: [Found(tuple(box), color) for box, color in ones] for kind, ones in objects.items()}
        verdict = judge(found, given["metadata"])
        assert (verdict.correct, verdict.strict) == (wanted["correct"], wanted["strict_correct"]), verdict
        assert len(verdict.reasons) == len(wanted["reason"].splitlines())
        reason = SCORE_DIFFERS.get(case["name"])
        if reason is None:
            assert verdict.score == pytest.approx(wanted["score"]), verdict
        else:
            assert verdict.score != pytest.approx(wanted["score"])
        assert 0 <= verdict.score <= 1
    else:
        assert case["fn"] == "summary_scores"  # the benchmark's summary belongs to evaluation
