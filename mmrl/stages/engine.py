"""Rollouts that an inference engine drew: it gets the weights before, and is compared and corrected for after.

The core knows an engine only by `Policy.publish` and by the log-probs that it reported. Shapes: n samples of this rank, S steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from mmrl.distributed import Group
from mmrl.errors import RunError
from mmrl.meter import Meter
from mmrl.objective.correction import Correction
from mmrl.stages.rounds import Round

FAR = 0.05
"""Mean |log-prob - the engine's| above which engine and trainer are hardly one model."""

UNCORRECTED = (
    "an inference engine draws and objective.correction is null: tokens are trained as if the trainer's own model had drawn "
    "them; {name: tis} corrects the difference"
)


def publish(policy: Any, version: str, group: Group) -> None:
    """Hand the present weights to what draws for `policy`, where that is not the policy itself: one rank writes, and the
    others follow when it has done so. Raises on every rank what stopped one of them."""
    for writes in (True, False):
        problem: Exception | None = None
        if writes == group.main:
            try:
                policy.publish(version, writes)
            except Exception as error:  # raised again on every rank, so that no rank waits for ever
                problem = error
        group.raise_together(problem)


def compare(rounds: Sequence[Round], group: Group, meter: Meter, warn: Callable[[str], None]) -> None:
    """Log how far the engine that drew `rounds` is from the trainer, over the samples that are trained."""
    total, count = 0.0, 0.0
    for part in rounds:
        reported = part.rollout.engine_log_prob
        assert reported is not None
        gap = (part.rollout.log_prob - reported).abs()[part.drawn]
        total, count = total + float(gap.sum(dtype=torch.float64)), count + gap.numel()
    everywhere = [sum(column) for column in zip(*group.gather((total, count)), strict=True)]
    mean = everywhere[0] / max(everywhere[1], 1.0)
    meter.set({"rollout/engine_gap": mean})
    if not mean <= FAR:
        warn(
            f"the log-probs of the inference engine are {mean:.2g} off the trainer's on average (more than {FAR}): does it serve "
            "the same model in the same dtype, and report log-probs of the rollout's temperature?"
        )


def correct(correction: Correction, rounds: Sequence[Round], group: Group, meter: Meter) -> None:
    """Fill in the `factor` of every round. Raises RunError for rollouts without log-probs of an engine."""
    factors, sums = [], [0.0, 0.0]
    for part in rounds:
        rollout, drawn = part.rollout, part.drawn
        if rollout.engine_log_prob is None:
            raise RunError(
                "objective.correction needs the log-probs of an inference engine, and this rollout has none; "
                "leave it out (log-probs of the trainer's own model need no correction)"
            )
        factors.append(correction.factor(rollout.log_prob, rollout.engine_log_prob, drawn))
        sums = [a + b for a, b in zip(sums, correction.totals(factors[-1], drawn), strict=True)]
    everywhere = [sum(column) for column in zip(*group.gather(tuple(sums)), strict=True)]
    mean = everywhere[0] / max(everywhere[1], 1.0)
    meter.set({"correction": mean})
    for part, factor in zip(rounds, factors, strict=True):
        rollout, drawn = part.rollout, part.drawn
        assert rollout.engine_log_prob is not None
        kept = correction.keep(rollout.log_prob, rollout.engine_log_prob, drawn)
        meter.add("rejected", float((drawn & ~kept).sum()), float(drawn.sum()))
        part.factor = factor * kept / (mean if correction.normalize and mean else 1.0)
