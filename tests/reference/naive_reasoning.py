"""The formulas for reasoners as plain Python loops in float64, sharing no code with the package."""

from __future__ import annotations

import math


def gspo(log_prob: list[float], old: list[float], advantage: float, low: float, high: float) -> float:
    """One sample: the same loss at each of its steps."""
    s = math.exp(sum(a - b for a, b in zip(log_prob, old, strict=True)) / len(old))
    return max(-advantage * s, -advantage * min(max(s, 1 - low), 1 + high))


def gmpo(log_prob: list[float], old: list[float], advantage: list[float], low: float, high: float) -> float:
    held = 0.0
    for a, b, adv in zip(log_prob, old, advantage, strict=True):
        sign = (adv > 0) - (adv < 0)
        d = a - b
        held += sign * min(sign * d, sign * min(max(d, -low), high))
    n = len(old)
    return -sum(advantage) / n * math.exp(held / n)


def cispo_slope(log_prob: float, old: float, advantage: float, cap: float) -> float:
    return -min(math.exp(log_prob - old), cap) * advantage


def sapo(log_prob: float, old: float, advantage: float, positive: float, negative: float) -> float:
    tau = positive if advantage > 0 else negative
    r = math.exp(log_prob - old)
    return -advantage * 4 / tau / (1 + math.exp(-tau * (r - 1)))


def k3(a: float, b: float) -> float:
    return math.exp(b - a) - (b - a) - 1


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def spread(values: list[float]) -> float:
    m = mean(values)
    return math.sqrt(sum((v - m) ** 2 for v in values) / (len(values) - 1))


def rows(group: list[int], key: int, reward: list[float]) -> list[int]:
    return [i for i, g in enumerate(group) if g == key and not math.isnan(reward[i])]


def ngrpo(reward: list[float], group: list[int], best: float, virtual: int, eps: float) -> list[float]:
    result = []
    for r, key in zip(reward, group, strict=True):
        own = [reward[i] for i in rows(group, key, reward)]
        values = [*own, *[best] * virtual]
        if math.isnan(r) or len(own) < 2 or max(values) - min(values) <= 1e-6:
            result.append(0.0)
        else:
            result.append((r - mean(values)) / (spread(values) + eps))
    return result


def care(accuracy: list[float], consistency: list[float], group: list[int], weight: float) -> list[float]:
    bonus = [0.0] * len(group)
    for key in set(group):
        own = rows(group, key, accuracy)
        known = [i for i in own if not math.isnan(consistency[i])]
        for i in known:
            c = [min(consistency[j], 0.95) for j in known]
            good = accuracy[i] >= max(mean([accuracy[j] for j in own]), 0.1)
            if good and min(consistency[i], 0.95) >= mean(c) - 0.01:
                bonus[i] = weight * accuracy[i]
    return bonus


def majority(answers: list[str | None], group: list[int]) -> list[float]:
    result = []
    for i, key in enumerate(group):
        votes = [a for a, g in zip(answers, group, strict=True) if g == key and a is not None]
        best, most = None, 0
        for a in votes:
            if votes.count(a) > most:
                best, most = a, votes.count(a)
        result.append(1.0 if best is not None and answers[i] == best else 0.0)
    return result


def length_penalty(
    accuracy: list[float], length: list[float], group: list[int], gate: float, weight: float
) -> list[float]:
    result = [0.0] * len(group)
    for key in set(group):
        own = rows(group, key, accuracy)
        right = [i for i in own if accuracy[i] == 1]
        if own and len(right) / len(own) >= gate and len(right) > 1:
            lengths = [length[i] for i in right]
            for i in right:
                if spread(lengths) > 0:
                    result[i] = -weight * (length[i] - mean(lengths)) / spread(lengths)
    return result


def puzzle_weights(
    reward: list[float], answers: list[str | None], group: list[int], power: float, floor: float
) -> list[float]:
    result = [0.0] * len(group)
    for key in set(group):
        own = rows(group, key, reward)
        for i in own:
            p = mean([reward[j] for j in own])
            given = [answers[j] for j in own]
            d = 1 - max(given.count(a) for a in given) / len(given)
            result[i] = 4 * p * (1 - p) * max(d**power, floor)
    return result


def importance(old: list[float], engine: list[float], level: str, cap: float) -> list[float]:
    """Factors of one sample's steps."""
    d = [a - b for a, b in zip(old, engine, strict=True)]
    if level == "token":
        return [min(math.exp(x), cap) for x in d]
    total = sum(d) if level == "sequence" else mean(d)
    return [min(math.exp(total), cap)] * len(d)


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
