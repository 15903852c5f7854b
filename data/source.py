"""What a source of prompts, and a source of supervised examples, must do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

from mmrl.components import Component
from mmrl.data.split import Part, Split, SplitOption
from mmrl.errors import UserError
from mmrl.rollout import Prompt, Sample
from mmrl.seeding import permutation


class PromptSource(Component):
    """Base of every prompt source: an author writes `read`, a user gets `load` and the option `split`.

    Prompt ids are unique and stable: from the file, a line number or a fixed position, never from decoded text.
    `meta["source"]` says where a prompt comes from ("prompts.txt:12").
    """

    split: SplitOption = Split()

    @abstractmethod
    def read(self) -> list[Prompt]:
        """Every prompt of the source, in a fixed order. Raises UserError with file and line."""

    def load(self, part: Part | None = None) -> list[Prompt]:
        """The prompts of `part` (default: what `split` says). Raises UserError if there are none or an id repeats."""
        prompts = self.read()
        check_ids(prompts)
        return [prompts[position] for position in self.split.choose(prompts, part)]


def check_ids(prompts: Sequence[Prompt]) -> None:
    """Raises UserError if there are no prompts, or if two have the same id."""
    if not prompts:
        raise UserError("the prompt source is empty")
    seen: dict[str, Prompt] = {}
    for prompt in prompts:
        first = seen.setdefault(prompt.id, prompt)
        if first is not prompt:
            raise UserError(
                f"{_origin(prompt)}: id '{prompt.id}' was already used at {_origin(first)}; ids must be unique"
            )


def _origin(prompt: Prompt) -> str:
    return str(prompt.meta.get("source", prompt.id))


class Examples(Protocol):
    """An endless stream without state: example `index` is always the same one.

    One over a finite set also has its `samples` (`Finite`), so that they can be checked one by one.
    """

    def example(self, index: int) -> Sample:
        """The sample at a position of the stream, `images` uint8 (H, W, 3)."""
        ...


class ExampleSource(Component):
    """Base of every source of supervised examples (what the policy should have produced)."""

    @abstractmethod
    def open(self, seed: int) -> Examples:
        """The stream of this source for a seed: a pure function of the index. Raises UserError if it cannot be read."""


class Finite(Protocol):
    """A fixed number of samples, read when they are asked for."""

    prompts: Sequence[Prompt]
    """Of the samples, known without reading a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> Sample: ...


class Epochs:
    """Endless passes over a finite set, each in an order of its own that depends on the seed only."""

    def __init__(self, samples: Finite, seed: int) -> None:
        self.samples = samples
        self.seed = seed
        self._order = (-1, permutation(0, seed))

    def example(self, index: int) -> Sample:
        """Example `index % n` of pass `index // n`."""
        epoch, position = divmod(index, len(self.samples))
        if self._order[0] != epoch:
            self._order = (epoch, permutation(len(self.samples), "examples", self.seed, epoch))
        return self.samples[int(self._order[1][position])]
