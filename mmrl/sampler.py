"""Which prompts a step draws, how often, and with which seeds: a pure function of the step's index.

P prompts per step, G samples per prompt (the group size), n prompts in the set. Prompts are visited in epochs: every
prompt once, in an order of the epoch's own. Where two epochs share a step, the prompts that the step took from the old
epoch are moved back in the order of the new one, so that no step holds a prompt twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mmrl.curriculum.checklist import Checklist
from mmrl.errors import UserError
from mmrl.rollout import Draw, Prompt
from mmrl.seeding import derive_seed, permutation


class GroupSampler:
    """Draws `group_size` samples for each of `prompts_per_step` distinct prompts.

    Nothing but the index decides what `draws(index)` gives: a process that looks ahead, a resumed run and any number of
    ranks see the same draws. Raises UserError for an empty prompt set, repeated prompt ids and sizes that cannot work.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        prompts_per_step: int,
        group_size: int,
        seed: int = 0,
        stage: str = "",
        checklist: Checklist | None = None,
    ) -> None:
        if not prompts:
            raise UserError("there are no prompts to draw from")
        if prompts_per_step < 1 or group_size < 1:
            raise UserError(f"prompts_per_step ({prompts_per_step}) and group_size ({group_size}) must be at least 1")
        if prompts_per_step > len(prompts):
            raise UserError(
                f"prompts_per_step is {prompts_per_step}, but there are only {len(prompts)} prompts, and a step holds "
                f"none twice; set it to {len(prompts)} or less (group_size may grow instead) or add prompts"
            )
        first: dict[str, int] = {}
        for position, prompt in enumerate(prompts):
            if first.setdefault(prompt.id, position) != position:
                raise UserError(
                    f"prompts {first[prompt.id] + 1} and {position + 1} have the same id '{prompt.id}'; ids must differ"
                )
        self.prompts = tuple(prompts)
        self.prompts_per_step = prompts_per_step
        self.group_size = group_size
        self.seed = seed
        self.stage = stage
        self.checklist = checklist
        self._cache: dict[int, np.ndarray] = {}

    def __iter__(self) -> GroupIterator:
        return GroupIterator(self)

    def draws(self, index: int) -> list[Draw]:
        """The P x G draws of step `index` (from 0), group after group; group g is the g-th prompt of the step.

        With a checklist the chosen sub-questions of all prompts follow, each a group of its own, numbered from P on so that
        those of group g are P + g Q to P + g Q + Q - 1, Q being the most that a prompt may have.
        """
        if index < 0:
            raise ValueError(f"the index of a draw must not be negative, got {index}")
        found: list[Draw] = []
        prompts = self.prompts_of(index)
        for group, prompt in enumerate(prompts):
            found += self._group(index, group, prompt, self.group_size)
        if self.checklist is not None:
            size = self.checklist.group_size
            for parent, prompt in enumerate(prompts):
                first = len(prompts) + parent * self.checklist.questions
                for group, question in enumerate(self.checklist.chosen(prompt, self.seed, self.stage, index), first):
                    found += self._group(index, group, question, size, parent)
        return found

    def _group(self, index: int, group: int, prompt: Prompt, size: int, parent: int | None = None) -> list[Draw]:
        shared = derive_seed("group", self.seed, self.stage, index, group)
        return [
            Draw(
                prompt,
                group,
                member,
                derive_seed("sample", self.seed, self.stage, index, group, member),
                shared,
                parent=parent,
            )
            for member in range(size)
        ]

    @property
    def groups(self) -> int:
        """More than any group number of a step."""
        asked = 0 if self.checklist is None else self.checklist.questions
        return self.prompts_per_step * (1 + asked)

    def prompts_of(self, index: int) -> list[Prompt]:
        """The P distinct prompts of step `index`."""
        start = index * self.prompts_per_step
        places = [divmod(start + offset, len(self.prompts)) for offset in range(self.prompts_per_step)]
        return [self.prompts[self._order(epoch)[position]] for epoch, position in places]

    def epoch(self, index: int) -> float:
        """How often the prompt set has been visited before step `index`."""
        return index * self.prompts_per_step / len(self.prompts)

    def _order(self, epoch: int) -> np.ndarray:
        """The order `(n,)` of an epoch, the prompts of a step shared with the epoch before moved back."""
        if epoch not in self._cache:
            first = epoch  # the nearest epoch whose order needs no other: at most P steps back
            while (
                self._shared(first) and first - 1 not in self._cache and len(self.prompts) < 2 * self.prompts_per_step
            ):
                first -= 1
            for number in range(first, epoch + 1):
                order = self._fitted(number)
                self._cache = {key: value for key, value in self._cache.items() if key >= number - 1} | {number: order}
        return self._cache[epoch]

    def _shared(self, epoch: int) -> int:
        """How many prompts of the epoch before sit in the step in which `epoch` begins."""
        return epoch * len(self.prompts) % self.prompts_per_step

    def _raw(self, epoch: int) -> np.ndarray:
        return permutation(len(self.prompts), "order", self.seed, self.stage, epoch)

    def _fitted(self, epoch: int) -> np.ndarray:
        # Only the first P places change, and the next epoch looks at most at the last P - 1: with n >= 2 P the two do
        # not meet, so the raw order of the epoch before is enough.
        order, shared = self._raw(epoch), self._shared(epoch)
        if not shared:
            return order
        before = self._cache.get(epoch - 1)
        tail = (self._raw(epoch - 1) if before is None else before)[-shared:]
        head = order[: self.prompts_per_step]
        taken = np.isin(head, tail)
        order[: self.prompts_per_step] = np.concatenate([head[~taken], head[taken]])
        return order


class GroupIterator(Iterator[list[Draw]]):
    """Walks through a sampler's draws without end; `index` is the step that comes next."""

    def __init__(self, sampler: GroupSampler, index: int = 0) -> None:
        self.sampler = sampler
        self.index = index

    def __next__(self) -> list[Draw]:
        found = self.sampler.draws(self.index)
        self.index += 1
        return found

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"index": self.index}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.index = int(state["index"])
