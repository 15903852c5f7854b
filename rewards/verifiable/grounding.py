"""Answers that point into a picture or into time: boxes, points and spans."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from mmrl.rewards.verifiable.base import Case, VerifiableReward
from mmrl.rewards.verifiable.geometry import distance_in_boxes, giou, iou, matched_mean, temporal_iou
from mmrl.rewards.verifiable.parse.boxes import Box, Frame, frame_scale, gold_boxes, parse_boxes, parse_points
from mmrl.rewards.verifiable.parse.region import Parsed, normalise
from mmrl.rewards.verifiable.parse.spans import Span, gold_spans, parse_spans


class InPicture(VerifiableReward):
    """Base of rewards with coordinates in a picture.

    Where the answer's frame and the target's differ, pixel frames need the picture's size in pixels: `size` (width,
    height) as stored, `resized` as the model saw it, each in the sample's meta or else the prompt's.
    """

    frame: Frame = "pixel_original"
    """The frame that answers are in."""
    target_frame: Frame | None = None
    """The frame of the targets; the same one if it is not set."""

    def scales(self, case: Case) -> tuple[tuple[float, float], tuple[float, float]]:
        """Factors (x, y) that bring answers, and targets, into one frame. Raises ValueError without a size it needs."""
        if self.target_frame in (None, self.frame):
            return (1.0, 1.0), (1.0, 1.0)
        sizes = [_size(case, name) for name in ("size", "resized")]
        assert self.target_frame is not None
        return frame_scale(self.frame, sizes[0], sizes[1]), frame_scale(self.target_frame, sizes[0], sizes[1])


def _size(case: Case, name: str) -> Sequence[float] | None:
    metas: tuple[Mapping[str, Any], ...] = (case.sample.meta, case.sample.prompt.meta)
    return next((meta[name] for meta in metas if meta.get(name) is not None), None)


class BboxIou(InPicture):
    """How well the answer's boxes agree with the target's.

    single   one box is wanted, and the answer's last one counts
    matched  mean over the best one-to-one matching, divided by the larger number of boxes
    """

    measure: Literal["iou", "giou"] = "iou"
    """giou earns (1 + GIoU) / 2, so that any box is worth at least as much as none."""
    boxes: Literal["single", "matched"] = "single"
    """`single`: the answer's last box against one target; `matched`: all boxes, matched one to one."""
    threshold: float | None = Field(default=None, gt=0, le=1)
    """1 if a pair's measure reaches it, else 0; without it, the measure itself."""
    labels: bool = False
    """Boxes with different labels do not agree at all."""

    def grade(self, case: Case) -> tuple[Parsed[Any], float]:
        """Raises ValueError for a target that is no box, or not one box where a single one is wanted."""
        gold = gold_boxes(case.target)
        if self.boxes == "single" and len(gold) != 1:
            raise ValueError(f"the target has {len(gold)} boxes; expected one (or set boxes: matched)")
        mine, theirs = self.scales(case)
        parsed = parse_boxes(case.text, **self.reading)
        if parsed.value is None or (self.boxes == "single" and not parsed.value):
            return parsed.found(None), 0.0
        found = [box.scaled(*mine) for box in parsed.value]
        wanted = [box.scaled(*theirs) for box in gold]
        if self.boxes == "single":
            return parsed, self._agreement(found[-1], wanted[0])
        return parsed, matched_mean(found, wanted, self._agreement)

    def _agreement(self, a: Box, b: Box) -> float:
        if self.labels and normalise(a.label) != normalise(b.label):
            return 0.0
        value = iou(a, b) if self.measure == "iou" else (1 + giou(a, b)) / 2
        return value if self.threshold is None else float(value >= self.threshold)


class PointInBox(InPicture):
    """1 if the answer's last point lies in the target box, or in one of several."""

    sigma: float | None = Field(default=None, gt=0)
    """Outside, exp(-d^2 / 2 sigma^2) with d in widths and heights of the box; without it, 0."""

    def grade(self, case: Case) -> tuple[Parsed[Any], float]:
        """Raises ValueError for a target that is no box."""
        gold = gold_boxes(case.target)
        if not gold:
            raise ValueError("the target is an empty list; expected a box")
        mine, theirs = self.scales(case)
        parsed = parse_points(case.text, **self.reading)
        if parsed.value is None:
            return parsed, 0.0
        point = parsed.value[-1][0] * mine[0], parsed.value[-1][1] * mine[1]
        away = min(distance_in_boxes(point, box.scaled(*theirs)) for box in gold)
        if self.sigma is None:
            return parsed, float(away == 0)
        return parsed, math.exp(-0.5 * (away / self.sigma) ** 2)


class TemporalIou(VerifiableReward):
    """Intersection over union of the answer's spans of time with the target's.

    For a target [start, end] the answer's last span counts, for a list of spans the union of all.
    """

    reversed_span: Literal["swap", "zero"] = "swap"
    """What an answer that puts the end first is worth."""
    threshold: float | None = Field(default=None, gt=0, le=1)
    """1 if the measure reaches it, else 0; without it, the measure itself."""

    def grade(self, case: Case) -> tuple[Parsed[tuple[Span, ...]], float]:
        """Raises ValueError for a target that is no span."""
        gold = gold_spans(case.target)
        parsed = parse_spans(case.text, **self.reading)
        if parsed.value is None:
            return parsed, 0.0
        single = bool(case.target) and not isinstance(case.target[0], list | tuple)
        found = parsed.value[-1:] if single else parsed.value
        if self.reversed_span == "zero" and any(start > end for start, end in found):
            return parsed, 0.0
        value = temporal_iou([(min(span), max(span)) for span in found], gold)
        return parsed, value if self.threshold is None else float(value >= self.threshold)
