"""Dynamic sampling: groups without signal are replaced by further ones until the step is full (DAPO).

The decision is a pure function of rewards gathered from all ranks, so that every rank makes the same one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mmrl.advantage.stats import group_stats
from mmrl.advantage.types import Ints, Scored


def useful(scored: Scored, low: float | None = None, high: float | None = None) -> Ints:
    """Numbers of the groups that are worth training on, ascending: their rewards differ, and their mean is above `low`
    and below `high` where these are given; groups of sub-questions are not counted. Source: DAPO (arXiv 2503.14476); bounds as in
    EasyR1."""
    stats = group_stats(scored.reward, scored.group)
    good = ~stats.flat
    if low is not None:
        good &= stats.mean > low
    if high is not None:
        good &= stats.mean < high
    groups = np.unique(scored.group)[good]
    return groups if scored.parent is None else groups[np.isin(groups, scored.group[scored.parent < 0])]


def admitted(scored: Scored, wanted: int, low: float | None = None, high: float | None = None) -> Scored:
    """The first `wanted` useful groups with their sub-questions; all other samples become unscorable, as if they had never been
    drawn."""
    groups = useful(scored, low, high)[:wanted]
    inside = np.isin(scored.group, groups)
    if scored.parent is not None:
        inside |= np.isin(scored.parent, groups)
    return replace(scored, reward=np.where(inside, scored.reward, np.nan))
