"""The shapes world as prompts, and as captioned pictures drawn on the fly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from mmrl.data.shapes.captions import captions, parse, sample_scene
from mmrl.data.shapes.draw import render
from mmrl.data.shapes.parts import part_of
from mmrl.data.source import ExampleSource, PromptSource
from mmrl.data.split import Part, Split, SplitOption
from mmrl.rollout import Prompt, Sample
from mmrl.seeding import derive_seed

Kind = Literal["count", "relation"]


KINDS: tuple[Kind, ...] = ("count", "relation")


def shapes_prompts(kind: Kind | None, parts: Split, part: Part | None = None) -> list[Prompt]:
    """The captions of one part as prompts with targets, ids "shapes:NUMBER" in the world's fixed order."""
    chosen = set(captions(kind))
    prompts = [
        Prompt(
            id=f"shapes:{number}", text=text, target=parse(text), meta={"kind": parse(text)["kind"], "source": "shapes"}
        )
        for number, text in enumerate(captions())
        if text in chosen
    ]
    return part_of(prompts, [captions(kind) for kind in KINDS], parts, part, "shapes")


class ShapesPrompts(PromptSource):
    """300 captions of the shapes world, or those of one kind; `target` is what the shapes reward verifies."""

    kind: Kind | None = None

    def read(self) -> list[Prompt]:
        """All captions."""
        return shapes_prompts(self.kind, self.split, "all")

    def load(self, part: Part | None = None) -> list[Prompt]:
        """The captions of a part. Raises UserError if it is empty."""
        return shapes_prompts(self.kind, self.split, part)


class ShapesExamples(ExampleSource):
    """Captions with drawn 24 x 24 pictures, a new one at every index."""

    kind: Kind | None = None
    split: SplitOption = Split()

    def open(self, seed: int) -> Drawings:
        """The endless stream. Raises UserError if the part is empty."""
        return Drawings(shapes_prompts(self.kind, self.split), seed)


class Drawings:
    """Example `index` is a function of (seed, index): a caption drawn at random and a scene that satisfies it."""

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        self.prompts = prompts
        self.seed = seed

    def example(self, index: int) -> Sample:
        """One caption with its picture, uint8 (24, 24, 3)."""
        rng = np.random.default_rng(derive_seed("shapes", self.seed, index))
        prompt = self.prompts[int(rng.integers(len(self.prompts)))]
        return Sample(prompt, images=(render(sample_scene(prompt.target, rng)),))
