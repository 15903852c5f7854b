"""A mixture of puzzles as prompts, and as demonstrations of how one answers."""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any, Literal

import numpy as np
from pydantic import Field, PrivateAttr, field_validator

from mmrl.components import Component
from mmrl.data.puzzles.named import Entry, PicturesChoice
from mmrl.data.puzzles.prompt import LazyPrompt
from mmrl.data.source import ExampleSource, PromptSource
from mmrl.data.split import Part
from mmrl.rollout import Prompt, Sample
from mmrl.seeding import derive_seed

INSTRUCTION = "Think inside <think></think>, then answer inside <answer></answer>."
GUESSES = 16
"""Answers without looking that a prompt brings along."""
STREAMS = {"prompts": "puzzles", "examples": "demonstrations"}
"""Stream -> how its ids begin: puzzle i of one is another puzzle than puzzle i of the other."""
REMEMBERED = 32
"""Puzzles whose pictures a source keeps at a time."""


class Mixture(Component):
    """Puzzles of several kinds and levels in the proportion of their weights; base of the prompts and the examples."""

    mixture: tuple[Entry, ...]
    """`[{kind: jigsaw, level: 2, weight: 1, size: 112}, ...]`: kinds with their levels and options."""
    pictures: PicturesChoice = Field(default=PicturesChoice(), validate_default=True)
    """Where jigsaw, rotation and patch_fit get their pictures: procedural, folder, skimage or digits."""
    instruction: str = INSTRUCTION
    """A last line of every question; an empty one adds none."""

    @field_validator("mixture")
    @classmethod
    def _is_one(cls, mixture: tuple[Entry, ...]) -> tuple[Entry, ...]:
        if not mixture:
            raise ValueError("the mixture is empty; name at least one puzzle, such as [{kind: jigsaw, level: 1}]")
        return mixture

    def choose(self, stream: str, seed: int, index: int) -> tuple[Entry, int]:
        """Which entry and level puzzle `index` of a stream has."""
        rng = np.random.default_rng(derive_seed("puzzle mixture", stream, seed, index))
        weights = np.array([entry.weight for entry in self.mixture])
        entry = self.mixture[int(rng.choice(len(weights), p=weights / weights.sum()))]
        return entry, int(rng.choice(entry.levels))

    def prompt(self, stream: str, seed: int, index: int) -> Prompt:
        """Puzzle `index` of a stream as a prompt with its pictures: a pure function of the arguments.

        `target`: the puzzle's kind, a right answer, and what its verifier needs. `meta`: kind, level, "guesses" (answers of
        someone who has not looked: what they earn is the chance level) and what the puzzle says of itself ("rationale",
        "fps", "checklist", ...).
        """
        entry, level = self.choose(stream, seed, index)
        rng = np.random.default_rng(derive_seed("puzzle", stream, seed, entry.kind, level, index))
        puzzle = entry.maker.make(rng, level, self.pictures.pictures)
        blind = np.random.default_rng(derive_seed("guess", stream, seed, entry.kind, level, index))
        guesses = [answered(entry.maker.random_answer(blind, puzzle.target)) for _ in range(GUESSES)]
        checklist = [{**one, "question": self._asked(one["question"])} for one in puzzle.meta.get("checklist", ())]
        return Prompt(
            id=f"{STREAMS[stream]}:{index}",
            text=self._asked(puzzle.question),
            media=puzzle.media,
            target={"kind": entry.kind, "answer": puzzle.answer, "puzzle": puzzle.target},
            meta={
                **puzzle.meta,
                **({"checklist": checklist} if checklist else {}),
                "kind": entry.maker.kind,
                "level": level,
                "source": f"{STREAMS[stream]}:{index}",
                "guesses": guesses,
            },
        )

    def _asked(self, question: str) -> str:
        return "\n".join(part for part in (question, self.instruction) if part)


class PuzzlePrompts(Mixture, PromptSource):
    """`number` puzzles from a mixture of kinds and levels, drawn when they are asked for.

    Parts are split by id, so training and held-out puzzles come from different seeds. With real pictures both still show
    the same photographs; give them folders of their own where that matters.
    """

    number: int = Field(default=2000, ge=1)
    """Puzzles in all parts together."""
    seed: int = 0
    _recent: OrderedDict[int, Prompt] = PrivateAttr(default_factory=OrderedDict)

    def read(self) -> list[Prompt]:
        """All puzzles. Raises UserError if there are no pictures."""
        return self._prompts(range(self.number))

    def load(self, part: Part | None = None) -> list[Prompt]:
        """The puzzles of a part, split by their ids alone. Raises UserError if it is empty or there are no pictures."""
        ids = [Prompt(f"puzzles:{index}", f"puzzles:{index}") for index in range(self.number)]
        return self._prompts(self.split.choose(ids, part))

    def _prompts(self, indices: Any) -> list[Prompt]:
        self.pictures.pictures.check()
        return [LazyPrompt(f"puzzles:{index}", draw=functools.partial(self._drawn, index)) for index in indices]

    def _drawn(self, index: int) -> Prompt:
        found = self._recent.get(index)
        if found is None:
            found = self._recent[index] = self.prompt("prompts", self.seed, index)
            while len(self._recent) > REMEMBERED:
                self._recent.popitem(last=False)
        return found


class PuzzleExamples(Mixture, ExampleSource):
    """Puzzles with right answers in the format asked for: honest demonstrations, a new one at every index."""

    think: Literal["rationale", "empty"] = "rationale"
    """What stands inside <think></think>: a true sentence about the puzzle, or nothing."""

    def open(self, seed: int) -> Demonstrations:
        """The endless stream; it shares no puzzle with the prompts. Raises UserError if there are no pictures."""
        self.pictures.pictures.check()
        return Demonstrations(self, seed)


class Demonstrations:
    """Example `index` is a function of (seed, index)."""

    def __init__(self, source: PuzzleExamples, seed: int) -> None:
        self.source, self.seed = source, seed

    def example(self, index: int) -> Sample:
        """A prompt with its pictures, and "<think>...</think><answer>...</answer>" as the text."""
        prompt = self.source.prompt("examples", self.seed, index)
        thought = str(prompt.meta.get("rationale", "")) if self.source.think == "rationale" else ""
        return Sample(prompt, text=answered(prompt.target["answer"], thought))


def answered(answer: str, thought: str = "") -> str:
    """An answer in the format asked for."""
    return f"<think>{thought}</think><answer>{answer}</answer>"
