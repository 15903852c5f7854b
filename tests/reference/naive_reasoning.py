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
            most = max(given.count(a) for a in given)
            d = 1 - most / len(given)
            result[i] = 4 * p * (1 - p) * (floor if most == len(given) else d**power)
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


def is_uncertain(entropy: list[float], k: int, q: float) -> bool:
    return entropy[k] > quantile(entropy, q)


def archer(log_prob: float, old: float, advantage: float, width: float) -> float:
    r = math.exp(log_prob - old)
    return max(-advantage * r, -advantage * min(max(r, 1 - width), 1 + width))


def aspo_slope(log_prob: float, old: float, advantage: float, width: float, cap: float) -> float:
    r = math.exp(log_prob - old)
    if advantage < 0:
        return 0.0 if r < 1 - width else -advantage * min(r, cap)
    return 0.0 if r > 1 + width else -advantage * min(1 / r, cap)


def dcpo(log_prob: float, old: float, advantage: float, low: float, high: float, cap: float) -> float:
    q, r = math.exp(old), math.exp(log_prob - old)
    lower = 0.5 + 0.5 * math.sqrt(max(0.0, 1 - 4 * low / q))
    upper = min(cap, 0.5 + 0.5 * math.sqrt(1 + 4 * high / q))
    loss = max(-advantage * r, -advantage * min(max(r, lower), upper))
    return min(loss, -cap * advantage) if advantage < 0 else loss


def smooth(reward: list[float], group: list[int], past: dict[int, list[list[float]]]) -> list[float]:
    """DCPO from all earlier rewards of each prompt (here its group's number), one list per earlier group."""
    result = []
    for r, key in zip(reward, group, strict=True):
        if math.isnan(r):
            result.append(0.0)
            continue
        own = [reward[i] for i in rows(group, key, reward)]
        visits, total_mean, total_std = 0, 0.0, 0.0
        for values in [*past.get(key, []), own]:
            m = mean(values)
            s = spread(values) if len(values) > 1 and max(values) > min(values) else 0.0
            c = visits
            total_std = math.sqrt((c * total_std**2 + s**2 + c / (c + 1) * (m - total_mean) ** 2) / (c + 1))
            total_mean = (c * total_mean + m) / (c + 1)
            visits += 1
        now = (r - mean(own)) / spread(own) if len(own) > 1 and max(own) > min(own) else 0.0
        ever = (r - total_mean) / total_std if total_std > 1e-9 else 0.0
        one, other = ever / visits + (1 - 1 / visits) * now, now / visits + (1 - 1 / visits) * ever
        result.append(one if abs(one) <= abs(other) else other)
    return result


def together(a: list[int], b: list[int], steps: int) -> bool:
    return a[:steps] == b[:steps]


def treepo(reward: list[float], group: list[int], node: list[list[int]], equal: bool, drop: bool) -> list[float]:
    """Nodes are ids per step; two samples share a subgroup at every place where a new node begins."""
    result = []
    for i, r in enumerate(reward):
        if math.isnan(r):
            result.append(math.nan)
            continue
        mates = [j for j in range(len(reward)) if group[j] == group[i] and not math.isnan(reward[j])]
        parts = [(r - mean([reward[j] for j in mates]), len(mates))]
        for k, one in enumerate(node[i]):
            if one == -1 or (k > 0 and node[i][k - 1] == one):
                continue
            sub = [j for j in mates if node[j][k] == one]
            values = [reward[j] for j in sub]
            if len(sub) > 1 and not (drop and max(values) == min(values)):
                parts.append((r - mean(values), len(sub)))
        weights = [1 if equal else size for _, size in parts]
        result.append(sum(w * x for w, (x, _) in zip(weights, parts, strict=True)) / sum(weights))
    return result


def node_value(value: list[float], node: list[list[int]], one: int) -> float:
    """Mean over the children of a node; a sample that ends in it counts with the others that do as one child."""
    children: dict[int, None] = {}
    ends = []
    for row, v in zip(node, value, strict=True):
        if one not in row or math.isnan(v):
            continue
        after = [k for k in row[row.index(one) :] if k not in (one, -1)]
        if after:
            children[after[0]] = None
        else:
            ends.append(v)
    parts = [node_value(value, node, child) for child in children] + ([mean(ends)] if ends else [])
    return mean(parts)


def progress(value: list[float], node: list[list[int]]) -> list[list[float]]:
    result = []
    for row, v in zip(node, value, strict=True):
        own, before, last = [], 0.0, -1
        gain = 0.0
        for one in row:
            if one not in (-1, last):
                now = node_value(value, node, one) if not math.isnan(v) else 0.0
                gain, before, last = now - before, now, one
            own.append(gain if one != -1 and not math.isnan(v) else 0.0)
        result.append(own)
    return result
