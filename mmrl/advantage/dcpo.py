"""DCPO's smooth advantage standardisation: a group against itself and against all earlier groups of its prompt."""

from __future__ import annotations

import numpy as np

from mmrl.advantage.history import Past, merged
from mmrl.advantage.stats import FLAT, group_stats
from mmrl.advantage.types import Advantage, Floats, Ints, Scored


def smooth(reward: Floats, group: Ints, visits: Floats, mean: Floats, std: Floats) -> Floats:
    """Advantages `(N,)` from the past of each sample's prompt (`visits`, `mean`, `std` `(N,)`, before this group).

    With a = (R - m) / s of the group, t = (R - Q') / S' of all its prompt's groups with this one (each 0 where the std
    is 0) and i the number of those groups: of `t / i + (1 - 1 / i) a` and `a / i + (1 - 1 / i) t` the smaller in size.
    So a group without differences still learns from what its prompt was worth before; the first group of a prompt gets a.
    NaN becomes 0. Source: DCPO (arXiv 2509.02333, lime-RL/DCPO, `compute_dcpo_outcome_advantage`).
    """
    stats = group_stats(reward, group)
    found = np.zeros(len(reward))
    for row in np.flatnonzero(~np.isnan(reward)).tolist():
        number = stats.index[row]
        m, s = float(stats.mean[number]), 0.0 if stats.flat[number] else float(stats.std[number])
        all_ = merged(Past(int(visits[row]), float(mean[row]), float(std[row])), m, s)
        now = (reward[row] - m) / s if s else 0.0
        ever = (reward[row] - all_.mean) / all_.std if all_.std > FLAT * max(1.0, abs(all_.mean)) else 0.0
        share = 1 / all_.visits
        found[row] = min(share * ever + (1 - share) * now, share * now + (1 - share) * ever, key=abs)
    return found


class DcpoAdvantage(Advantage):
    """DCPO: `group` without eps, smoothed with the earlier groups of the prompt, which checkpoints keep. A refill and
    selection `signal` would drop the constant groups that it makes useful, and are refused."""

    @property
    def remembers(self) -> int:
        return 0

    def __call__(self, scored: Scored) -> Floats:
        past = (scored.measured(f"history/{name}") for name in ("visits", "mean", "std"))
        return smooth(scored.reward, scored.group, *past)
