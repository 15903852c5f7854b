"""A direct stage: the gradient of the reward itself, through the picture into the last steps that drew it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mmrl.config.resolved import ResolvedDirect
from mmrl.distributed import Group, slice_of
from mmrl.errors import RunError
from mmrl.meter import Meter
from mmrl.policy import Policy
from mmrl.sampler import GroupSampler
from mmrl.seeding import derive_seed
from mmrl.stages.work import Updates, readable


class DirectWork:
    """`-sum of weighted rewards + penalty * distance`, a mean over the samples of a step on all ranks; the pictures of a step are
    a function of its index."""

    def __init__(
        self, stage: ResolvedDirect, policy: Policy, group: Group, seed: int, say: Callable[[str], None]
    ) -> None:
        self.stage, self.policy, self.group, self.seed = stage, policy, group, seed
        self.samples_per_step = stage.section.batch_size
        prompts = readable(policy, stage.prompts.load(), say)
        self.sampler = GroupSampler(prompts, self.samples_per_step, 1, seed, stage.name)
        self.updates_per_step = 1

    def updates(self, step: int, meter: Meter) -> Updates:
        yield self._losses(step, meter)

    def _losses(self, step: int, meter: Meter) -> Iterator[Tensor]:
        section, policy = self.stage.section, self.policy
        size: int = self.samples_per_step
        draws = self.sampler.draws(step)[slice_of(size, self.group.rank, self.group.world)]
        at = derive_seed(self.seed, self.stage.name, "step", step) % section.last
        drawn: Any = policy
        for start in range(0, len(draws), section.micro_batch):
            part = draws[start : start + section.micro_batch]
            with meter.time("update"):
                images, distance = drawn.drawn_with_gradient(
                    part, self.stage.plan, section.method, section.last, at, section.penalty > 0
                )
                total = self._rewards(images, [draw.prompt.text for draw in part], meter)
                loss = section.penalty * distance - total
                meter.add("loss", float(loss.detach().sum()), len(part))
                if section.penalty:
                    meter.add("distance", float(distance.detach().sum()), len(part))
                yield loss.sum() / size

    def _rewards(self, images: Tensor, prompts: list[str], meter: Meter) -> Tensor:
        """The weighted sum of the rewards `(B,)` with gradient. Raises RunError for one that is not finite."""
        total = torch.zeros(len(images), device=images.device)
        for name, use in self.stage.rewards.items():
            score = use.reward.score_tensor(images, prompts).float()
            if not bool(torch.isfinite(score).all()):
                row = int((~torch.isfinite(score)).nonzero()[0])
                raise RunError(f"reward '{name}' is {float(score[row])} for a picture of '{prompts[row]}'")
            meter.add(f"reward/{name}", float(score.detach().sum()), len(images))
            total = total + use.weight * score.to(total.device)
        meter.add("reward", float(total.detach().sum()), len(images))
        return total

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        pass
