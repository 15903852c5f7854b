"""How well boxes and spans of time agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from mmrl.rewards.verifiable.parse.boxes import Box
from mmrl.rewards.verifiable.parse.spans import Span


def _areas(a: Box, b: Box) -> tuple[float, float]:
    """Areas of the intersection and of the union, coordinates being real numbers (no +1)."""
    width = max(0.0, min(a.x2, b.x2) - max(a.x1, b.x1))
    height = max(0.0, min(a.y2, b.y2) - max(a.y1, b.y1))
    both = width * height
    return both, max(0.0, (a.x2 - a.x1) * (a.y2 - a.y1)) + max(0.0, (b.x2 - b.x1) * (b.y2 - b.y1)) - both


def iou(a: Box, b: Box) -> float:
    """Intersection over union, in [0, 1]; 0 if the union has no area."""
    both, either = _areas(a, b)
    return min(1.0, both / either) if either > 0 else 0.0


def giou(a: Box, b: Box) -> float:
    """Generalised IoU in [-1, 1]: IoU - (hull - union) / hull (Rezatofighi et al. 2019); 0 if the hull has no area."""
    both, either = _areas(a, b)
    hull = (max(a.x2, b.x2) - min(a.x1, b.x1)) * (max(a.y2, b.y2) - min(a.y1, b.y1))
    if hull <= 0 or either <= 0:
        return 0.0
    return max(-1.0, min(1.0, both / either - (hull - either) / hull))


def matched_mean(found: Sequence[Box], gold: Sequence[Box], agreement: Callable[[Box, Box], float]) -> float:
    """Sum of `agreement` over the best one-to-one matching (Hungarian), divided by the larger number of boxes.

    Boxes that are missed and boxes that are too many cost the same; none wanted and none found is 1.
    """
    if not found or not gold:
        return float(len(found) == len(gold))
    values = np.array([[agreement(a, b) for b in gold] for a in found])
    rows, columns = linear_sum_assignment(values, maximize=True)
    return float(values[rows, columns].sum()) / max(len(found), len(gold))


def distance_in_boxes(point: tuple[float, float], box: Box) -> float:
    """How far a point is outside a box, x and y measured in widths and heights of the box; 0 inside and on the edge."""
    x = max(box.x1 - point[0], 0.0, point[0] - box.x2) / (box.x2 - box.x1)
    y = max(box.y1 - point[1], 0.0, point[1] - box.y2) / (box.y2 - box.y1)
    return math.hypot(x, y)


def merged(spans: Sequence[Span]) -> list[Span]:
    """The union of spans (start <= end) as spans in order that do not touch; spans of length 0 vanish."""
    union: list[Span] = []
    for start, end in sorted(spans):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(end, union[-1][1]))
        else:
            union.append((start, end))
    return [(start, end) for start, end in union if end > start]


def temporal_iou(found: Sequence[Span], gold: Sequence[Span]) -> float:
    """Length of the intersection over length of the union of two sets of spans, in [0, 1].

    No span in either is 1; a union of length 0 otherwise is 0.
    """
    if not found and not gold:
        return 1.0
    a, b = merged(found), merged(gold)
    both = sum(max(0.0, min(x[1], y[1]) - max(x[0], y[0])) for x in a for y in b)
    either = sum(end - start for start, end in a) + sum(end - start for start, end in b) - both
    return min(1.0, both / either) if either > 0 else 0.0
