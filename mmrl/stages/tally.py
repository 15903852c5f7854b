"""What the samples of a step were worth: failures are counted, rewards watched, numbers logged."""

from __future__ import annotations

import numpy as np

from mmrl.advantage.stats import group_stats
from mmrl.alarms import Alarms
from mmrl.errors import RunError
from mmrl.evaluate import summarise
from mmrl.failures import FailureBudget
from mmrl.meter import Meter
from mmrl.reward import RewardSet
from mmrl.rollout import FAILED, SKIPPED
from mmrl.stages.rounds import Table
from mmrl.stages.work import Notices


class Tally:
    """Counts over all ranks; ends a run whose rewards fail too often."""

    def __init__(self, rewards: RewardSet, budget: FailureBudget, notices: Notices, lone: bool) -> None:
        """`lone`: whether a group with one scorable sample is worth a notice."""
        self.rewards, self.budget, self.notices, self.lone = rewards, budget, notices, lone
        self.alarms = Alarms(rewards.names, rewards.weights)
        self.scored = False
        """Whether some step had a score."""

    def add(self, table: Table, total: np.ndarray, meter: Meter) -> None:
        """Take in the samples of a step, useful or not; `total (N,)` is their reward. Raises RunError."""
        values, status = table.values, table.status
        failed = (status == FAILED).any(1)
        self._refuse(table, total)
        self.budget.add(failed=int(failed.sum()), total=len(total), messages=list(table.messages))
        self.scored = True
        for name, reward in zip(self.rewards.names, self.rewards.rewards, strict=True):
            meter.beside |= {f"reward/{name}/{key}": value for key, value in reward.stats().items()}
        for line in self.alarms.add(values):
            self.notices(line)
        found = summarise(self.rewards.names, values, status)
        meter.set({f"reward/{key}": value for key, value in found.items()})
        if np.isfinite(total).any():
            meter.set({"reward": float(np.nanmean(total)), "reward_std": float(np.nanstd(total))})
        meter.set({"failed": float(failed.sum()), "skipped": float((status == SKIPPED).any(1).sum())})
        for name, value in table.extra.items():
            if name != "length" and np.isfinite(value).any():
                meter.set({f"measured/{name}": float(np.nanmean(value))})
        stats = group_stats(total, table.group)
        meter.set(stats.metrics())
        if stats.singletons and self.lone:
            self.notices(f"{stats.singletons} groups have one scorable sample; their advantage is 0")

    def _refuse(self, table: Table, total: np.ndarray) -> None:
        """The ends of a run that no budget bears: a strict reward that fails, and a first step without any score."""
        for name, broken in zip(self.rewards.names, (table.status == FAILED).sum(0) * self.rewards.strict, strict=True):
            if broken:
                own = [message for message in table.messages if message.startswith(f"reward '{name}'")]
                raise RunError(
                    f"reward '{name}' failed on {broken} samples, and it ends the run at the first failure (on_failure: raise): "
                    f"{(*own, 'no reason given')[0]}"
                )
        if not np.isfinite(total).any() and not self.scored:
            counts = [
                f"{name}: {(own == FAILED).sum()} failed, {(own == SKIPPED).sum()} skipped"
                for name, own in zip(self.rewards.names, table.status.T, strict=True)
            ]
            raise RunError(
                f"no sample of the first step could be scored ({'; '.join(counts)}): "
                f"{(*table.messages, 'the rewards do not apply to these samples')[0]}"
            )
