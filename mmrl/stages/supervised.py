"""A supervised stage: the loss of examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from mmrl.config.resolve import ResolvedSupervised
from mmrl.distributed import Group, slice_of
from mmrl.meter import Meter
from mmrl.policy import Policy
from mmrl.seeding import derive_seed
from mmrl.stages.work import Updates


class SupervisedWork:
    """Mean per-example loss over a global batch; example `i` of the stage is a pure function of `i` and the seed."""

    def __init__(self, stage: ResolvedSupervised, policy: Policy, group: Group, seed: int) -> None:
        self.stage, self.policy, self.group, self.seed = stage, policy, group, seed
        self.examples = stage.examples.open(seed)
        self.updates_per_step = 1
        self.samples_per_step = stage.section.batch_size

    def updates(self, step: int, meter: Meter) -> Updates:
        yield self._losses(step, meter)

    def _losses(self, step: int, meter: Meter) -> Iterator[Tensor]:
        size, micro = self.samples_per_step, self.stage.section.micro_batch
        indices = list(range(step * size, (step + 1) * size))[slice_of(size, self.group.rank, self.group.world)]
        for start in range(0, len(indices), micro):
            part = indices[start : start + micro]
            with meter.time("data"):
                samples = [self.examples.example(index) for index in part]
            seeds = [derive_seed(self.seed, self.stage.name, "noise", index) for index in part]
            with meter.time("update"):
                loss = self.policy.supervised_loss(samples, seeds)
                meter.add("loss", float(loss.detach().sum()), len(part))
                yield loss.sum() / size

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        pass
