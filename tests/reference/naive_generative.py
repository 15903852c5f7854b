"""The rules of denoising papers as plain Python loops in float64."""

from __future__ import annotations

import math
from collections import deque

Way = tuple[int, ...]
"""The nodes of a leaf from the root down to some depth."""


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def latest(steps: list[tuple[list[str], list[float]]], keep: int, least: int, eps: float) -> list[list[float]]:
    """DDPO: a queue per prompt, step after step. NaN is left out and gets 0."""
    queues: dict[str, deque[float]] = {}
    found = []
    for prompts, rewards in steps:
        for prompt, reward in zip(prompts, rewards, strict=True):
            if not math.isnan(reward):
                queues.setdefault(prompt, deque(maxlen=keep)).append(reward)
        own = []
        for prompt, reward in zip(prompts, rewards, strict=True):
            pool = list(queues.get(prompt, []))
            if len(pool) < least:
                pool = [one for one in rewards if not math.isnan(one)]
            if math.isnan(reward) or max(pool) - min(pool) < 1e-6:
                own.append(0.0)
                continue
            spread = math.sqrt(mean([(one - mean(pool)) ** 2 for one in pool]))
            own.append((reward - mean(pool)) / (spread + eps))
        found.append(own)
    return found


def branch(reward: list[float], ways: list[Way], edge: dict[Way, float] | None) -> list[list[float]]:
    """BranchGRPO on one tree: a node is the beginning of the ways of its leaves; `edge` are the log-probs of the edges to the
    nodes, None for the mean of the leaves. Advantages of every leaf's nodes, depth by depth; 0 of a leaf without a reward."""
    depth = len(ways[0])

    def value(node: Way) -> float | None:
        leaves = [r for r, way in zip(reward, ways, strict=True) if way[: len(node)] == node and not math.isnan(r)]
        if not leaves:
            return None
        if edge is None or len(node) == depth:
            return mean(leaves)
        children = sorted({way[: len(node) + 1] for way in ways if way[: len(node)] == node})
        known = [(child, value(child)) for child in children]
        pairs = [(math.exp(edge[child]), one) for child, one in known if one is not None]
        return sum(weight * one for weight, one in pairs) / sum(weight for weight, _ in pairs)

    found = [[0.0] * depth for _ in ways]
    for k in range(1, depth + 1):
        values = {node: value(node) for node in {way[:k] for way in ways}}
        own = [one for one in values.values() if one is not None]
        if len(own) < 2:
            continue
        spread = math.sqrt(sum((one - mean(own)) ** 2 for one in own) / (len(own) - 1))
        for row, way in enumerate(ways):
            one = values[way[:k]]
            if spread >= 1e-6 and one is not None and not math.isnan(reward[row]):
                found[row][k - 1] = (one - mean(own)) / (spread + 1e-8)
    return found
