"""Step selectors: which steps of a rollout may be trained, said before it, and which are, chosen after it.

The plan made before the rollout is a pure function of (number of steps, iteration, seed), so that it is the same on all
ranks and resuming needs no state. A denoising policy integrates steps outside the plan without noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mmrl.components import Component

SALT = 0x57E9
"""Keeps the choice of steps apart from other streams that start from a draw's seed."""


class StepSelector(Component):
    """Base of the kind `steps`; by default every step is planned and every drawn step is trained."""

    @property
    def first_dropped(self) -> int | None:
        """The smallest depth (step + 1) that is ever dropped of a tree; None where none is."""
        return None

    def validate_for(self, num_steps: int) -> None:
        """Raise ValueError naming the valid settings when this does not fit rollouts of `num_steps` steps."""

    def before_rollout(self, num_steps: int, iteration: int, seed: int) -> Tensor:
        """Steps that may be trained, `(S,)` bool, never all False."""
        return torch.ones(num_steps, dtype=torch.bool)

    def after_rollout(self, mask: Tensor, seeds: Sequence[int]) -> Tensor:
        """Steps to train, `(N, S)` bool, a part of `mask (N, S)` = drawn and planned; `seeds` (N) of the draws."""
        return mask

    @property
    def measures(self) -> tuple[str, ...]:
        """What must be measured on a rollout before `after_measuring` (see `mmrl.objective.measure`)."""
        return ()

    def after_measuring(self, mask: Tensor, entropy: Tensor, pool: Tensor) -> Tensor:
        """Called where `measures` names the entropy: a part of `mask (N, S)`, the steps to train so far, from their
        `entropy (N, S)` and the entropies `pool` of such steps on all ranks."""
        return mask


def first(num_steps: int, number: int) -> Tensor:
    """`(S,)` bool with the first `number` steps True."""
    return torch.arange(num_steps) < number


def share(fraction: float, number: int) -> int:
    """`floor(fraction * number)`, not misled by 0.29 * 100 = 28.999999999999996."""
    return int(fraction * number + 1e-9)


def generator(*keys: int) -> np.random.Generator:
    """A random stream for these keys, alike on every machine."""
    return np.random.default_rng([key % 2**64 for key in keys])


class AllSteps(StepSelector):
    """Every step the policy drew."""


class FractionSteps(StepSelector):
    """The first `floor(fraction * S)` steps (Flow-GRPO: 0.99, all but the last)."""

    fraction: float = Field(default=0.99, gt=0, le=1)

    def validate_for(self, num_steps: int) -> None:
        if share(self.fraction, num_steps) < 1:
            raise ValueError(
                f"fraction {self.fraction} of {num_steps} steps is no step; use {1 / num_steps:.3g} or more"
            )

    def before_rollout(self, num_steps: int, iteration: int, seed: int) -> Tensor:
        self.validate_for(num_steps)
        return first(num_steps, share(self.fraction, num_steps))


class DepthPruned(StepSelector):
    """BranchGRPO's depth pruning: every step but those that lead to the depths `drop` (step + 1) is trained. Every `every` iterations the
    dropped depths move one towards the start, until the first of them is `stop`.

    It is about gradients: with `stochastic: all` the steps that are left out draw noise all the same. From iteration `until` on nothing
    is dropped.
    """

    drop: tuple[int, ...] = (15, 16, 17, 18, 19)
    every: int = Field(default=30, ge=1)
    stop: int = Field(default=11, ge=1)
    """Beyond the last split (its edges are always trained); the original stops at 10, to which the split at step 9 leads."""
    until: int | None = Field(default=None, ge=1)

    @property
    def first_dropped(self) -> int | None:
        return min(*self.drop, self.stop)

    def _dropped(self, iteration: int) -> list[int]:
        moved = max(0, min(iteration // self.every, min(self.drop) - self.stop))
        return [depth - moved for depth in self.drop]

    def validate_for(self, num_steps: int) -> None:
        if not self.drop or min(self.drop) < 1 or max(self.drop) > num_steps or len(set(self.drop)) == num_steps:
            raise ValueError(f"drop {list(self.drop)} must be some, not all, of the depths 1 to {num_steps}")

    def before_rollout(self, num_steps: int, iteration: int, seed: int) -> Tensor:
        self.validate_for(num_steps)
        plan = torch.ones(num_steps, dtype=torch.bool)
        if self.until is None or iteration < self.until:
            plan[torch.tensor(self._dropped(iteration)) - 1] = False
        return plan


class RandomSteps(StepSelector):
    """A random `floor(fraction * n)` of the n eligible steps: all but the last, or the first `among`.

    Every sample draws its own (DanceGRPO: 0.6); with `shared` one draw per iteration serves all samples and the other
    steps leave the plan. A sample with few drawn steps trains at least one.
    """

    fraction: float = Field(default=0.6, gt=0, le=1)
    shared: bool = False
    among: int | None = Field(default=None, ge=1)

    def _eligible(self, num_steps: int) -> int:
        return num_steps - 1 if self.among is None else self.among

    def validate_for(self, num_steps: int) -> None:
        eligible = self._eligible(num_steps)
        if eligible > num_steps:
            raise ValueError(f"among {eligible} of {num_steps} steps; use 1 to {num_steps}")
        if eligible < 1:
            raise ValueError(f"random leaves out the last of {num_steps} steps; set among to 1, or use 2 steps or more")
        if share(self.fraction, eligible) < 1:
            raise ValueError(
                f"fraction {self.fraction} of {eligible} eligible steps is no step; use {1 / eligible:.3g} or more"
            )

    def before_rollout(self, num_steps: int, iteration: int, seed: int) -> Tensor:
        self.validate_for(num_steps)
        eligible = self._eligible(num_steps)
        if not self.shared:
            return first(num_steps, eligible)
        chosen = generator(seed, iteration).permutation(eligible)[: share(self.fraction, eligible)]
        plan = torch.zeros(num_steps, dtype=torch.bool)
        plan[torch.from_numpy(chosen)] = True
        return plan

    def after_rollout(self, mask: Tensor, seeds: Sequence[int]) -> Tensor:
        if self.shared:
            return mask
        kept = torch.zeros_like(mask)
        for row, (drawn, seed) in enumerate(zip(mask.cpu().numpy(), seeds, strict=True)):
            steps = generator(int(seed), SALT).permutation(np.flatnonzero(drawn))
            kept[row, torch.from_numpy(steps[: max(1, share(self.fraction, len(steps)))]).to(mask.device)] = True
        return kept
