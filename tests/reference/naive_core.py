"""The formulas of the core as plain Python loops in float64: slow, obvious, and sharing no code with the package."""

from __future__ import annotations

import math


def spread(values: list[float], ddof: int) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - ddof))


def has_signal(values: list[float]) -> bool:
    if len(values) < 2:
        return False
    return max(values) - min(values) > 1e-6 * max(1.0, abs(sum(values) / len(values)))


def advantages(
    reward: list[float], group: list[int], rule: str, ddof: int = 1, eps: float = 1e-4, floor: float = 0.0
) -> list[float]:
    """`rule`: group | batch | none | rloo. NaN rewards are left out and get 0."""
    everyone = [r for r in reward if not math.isnan(r)]
    result = []
    for r, g in zip(reward, group, strict=True):
        peers = [s for s, h in zip(reward, group, strict=True) if h == g and not math.isnan(s)]
        if math.isnan(r) or not has_signal(peers) or spread(peers, ddof) < floor:
            result.append(0.0)
            continue
        mean = sum(peers) / len(peers)
        if rule == "group":
            result.append((r - mean) / (spread(peers, ddof) + eps))
        elif rule == "batch":
            result.append((r - mean) / (spread(everyone, ddof) + eps))
        elif rule == "rloo":
            result.append(r - (sum(peers) - r) / (len(peers) - 1))
        else:
            result.append(r - mean)
    return result


def clip(log_prob: float, old: float, advantage: float, low: float, high: float, dual: float | None) -> float:
    ratio = math.exp(max(-20.0, min(20.0, log_prob - old)))
    bounded = min(max(ratio, 1 - low), 1 + high)
    loss = max(-advantage * ratio, -advantage * bounded)
    if dual is not None and advantage < 0:
        loss = min(loss, -dual * advantage)
    return loss


def kl(log_prob: float, reference: float, estimator: str) -> float:
    d = reference - log_prob
    if estimator == "k1":
        return -d
    if estimator == "abs":
        return abs(d)
    if estimator == "k2":
        return d * d / 2
    d = max(-20.0, min(20.0, d))
    return max(-10.0, min(10.0, math.exp(d) - d - 1))


def aggregate(loss: list[list[float]], mask: list[list[bool]], mode: str, max_steps: int) -> float:
    """The loss of a whole optimizer step, straight from the definitions."""
    rows = [[v for v, m in zip(*pair, strict=True) if m] for pair in zip(loss, mask, strict=True)]
    rows = [row for row in rows if row]
    if not rows:
        return 0.0
    if mode == "token_mean":
        return sum(map(sum, rows)) / sum(map(len, rows))
    if mode == "seq_mean_token_sum":
        return sum(map(sum, rows)) / len(rows)
    if mode == "seq_mean_token_mean":
        return sum(sum(row) / len(row) for row in rows) / len(rows)
    return sum(sum(row) / max_steps for row in rows) / len(rows)


def window_walk(
    iterations: int,
    size: int,
    end: int,
    schedule: str,
    every: int,
    stride: int,
    roll_back: bool,
    every_min: int = 1,
    decay_from: int = 13,
    decay_rate: float = 0.1,
) -> list[list[int]]:
    """Windows over [0, end) as a state machine: used first, then moved; an empty window is skipped."""
    place, stayed, windows = 0, 0, []
    for _ in range(iterations):
        windows.append([k for k in range(place, place + size) if k < end])
        stay = every
        if schedule == "decay":
            stay = max(every_min, int(every * (1 - place / end) + every_min * place / end))
        elif schedule == "exp_decay":
            stay = math.ceil(every * math.exp(-decay_rate * max(0, place - decay_from)))
        stayed += 1
        if stayed >= stay:
            stayed = 0
            if place + stride < end:
                place += stride
            elif roll_back:
                place = 0
    return windows
