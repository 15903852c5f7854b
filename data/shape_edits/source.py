"""Shape edits as prompts with source pictures, and as pairs of before and after drawn on the fly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from mmrl.data.shape_edits.edits import KINDS, Kind, Task, sample_task
from mmrl.data.shapes.draw import render
from mmrl.data.source import ExampleSource, PromptSource
from mmrl.rollout import Prompt, Sample
from mmrl.seeding import derive_seed


def draw_task(kinds: Sequence[Kind], name: str, *seed: int) -> tuple[Prompt, Task]:
    """The prompt that is a function of (name, seed), with what it asks for: its media are the source pictures."""
    rng = np.random.default_rng(derive_seed(name, *seed))
    task = sample_task(kinds[int(rng.integers(len(kinds)))], rng)
    scenes = (task.before, *([] if task.second is None else [task.second]))
    prompt = Prompt(
        f"{name}:{seed[-1]}", task.edit.instruction, tuple(render(scene) for scene in scenes), task.target(),
        {"kind": task.edit.kind, "source": name},
    )  # fmt: skip
    return prompt, task


class ShapeEditPrompts(PromptSource):
    """Instructions to edit pictures of the shapes world; `target` is what the shape_edits reward verifies.

    Prompt i is a function of (seed, i).
    """

    kinds: tuple[Kind, ...] = Field(default=KINDS, min_length=1)
    """`insert` has two source pictures, the others one."""
    number: int = Field(default=500, ge=1)
    """In all parts together."""
    seed: int = 0

    def read(self) -> list[Prompt]:
        """All prompts."""
        return [draw_task(self.kinds, "shape_edits", self.seed, index)[0] for index in range(self.number)]


class ShapeEditExamples(ExampleSource):
    """Instructions with source pictures and the edited picture, a new one at every index, from other seeds than the
    prompts; their ids are "shape_edit_examples:NUMBER"."""

    kinds: tuple[Kind, ...] = Field(default=KINDS, min_length=1)

    def open(self, seed: int) -> Drawings:
        """The endless stream."""
        return Drawings(self.kinds, seed)


class Drawings:
    """Example `index` is a function of (seed, index)."""

    def __init__(self, kinds: Sequence[Kind], seed: int) -> None:
        self.kinds = kinds
        self.seed = seed

    def example(self, index: int) -> Sample:
        """One instruction with its source pictures and the picture after it, uint8 (24, 24, 3)."""
        prompt, task = draw_task(self.kinds, "shape_edit_examples", self.seed, index)
        return Sample(prompt, images=(render(task.after),))
