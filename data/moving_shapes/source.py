"""Moving shapes as prompts, and as captioned videos drawn on the fly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field, PositiveFloat

from mmrl.data.moving_shapes.captions import KINDS, Kind, captions, parse
from mmrl.data.moving_shapes.clip import Track, render, sample_clip
from mmrl.data.shapes.parts import part_of
from mmrl.data.source import ExampleSource, PromptSource
from mmrl.data.split import Part, Split, SplitOption
from mmrl.rollout import Prompt, Sample
from mmrl.seeding import derive_seed


def moving_prompts(kind: Kind | None, parts: Split, part: Part | None = None) -> list[Prompt]:
    """The captions of one part as prompts with targets, ids "moving_shapes:NUMBER" in the world's fixed order."""
    chosen = set(captions(kind))
    prompts = [
        Prompt(
            f"moving_shapes:{n}", text, target=(target := parse(text)),
            meta={"kind": target["kind"], "direction": target["direction"], "source": "moving_shapes"},
        )
        for n, text in enumerate(captions()) if text in chosen
    ]  # fmt: skip
    return part_of(prompts, [captions(kind) for kind in KINDS], parts, part, "moving_shapes")


def with_first_frame(prompt: Prompt, tracks: Sequence[Track]) -> Prompt:
    """The prompt that also gives the first frame of a clip, where the video must start."""
    target = prompt.target | {"start": [track.centre for track in tracks]}
    return Prompt(prompt.id, prompt.text, (render(tracks, 2)[0],), target, prompt.meta)


class MovingShapesPrompts(PromptSource):
    """576 captions of shapes that move, or those of one kind; `target` is what the moving_shapes reward verifies."""

    kind: Kind | None = None
    first_frame: bool = False
    """Give the first frame as a picture (image-to-video); one for each caption, drawn from its number."""

    def read(self) -> list[Prompt]:
        """All captions."""
        return self.load("all")

    def load(self, part: Part | None = None) -> list[Prompt]:
        """The captions of a part. Raises UserError if it is empty."""
        prompts = moving_prompts(self.kind, self.split, part)
        if not self.first_frame:
            return prompts
        return [
            with_first_frame(prompt, sample_clip(prompt.target, np.random.default_rng(derive_seed(prompt.id))))
            for prompt in prompts
        ]


class MovingShapesExamples(ExampleSource):
    """Captions with drawn 24 x 24 videos, a new one at every index."""

    kind: Kind | None = None
    first_frame: bool = False
    """Give the first frame of each video to the prompt (image-to-video)."""
    frames: int = Field(default=9, ge=2)
    fps: PositiveFloat = 8.0
    split: SplitOption = Split()

    def open(self, seed: int) -> Drawings:
        """The endless stream. Raises UserError if the part is empty."""
        return Drawings(self, moving_prompts(self.kind, self.split), seed)


class Drawings:
    """Example `index` is a function of (seed, index): a caption drawn at random and a clip that satisfies it."""

    def __init__(self, source: MovingShapesExamples, prompts: Sequence[Prompt], seed: int) -> None:
        self.source = source
        self.prompts = prompts
        self.seed = seed

    def example(self, index: int) -> Sample:
        """One caption with its video, uint8 (frames, 24, 24, 3), and `meta["fps"]`."""
        rng = np.random.default_rng(derive_seed("moving_shapes", self.seed, index))
        prompt = self.prompts[int(rng.integers(len(self.prompts)))]
        tracks = sample_clip(prompt.target, rng)
        if self.source.first_frame:
            prompt = with_first_frame(prompt, tracks)
        return Sample(prompt, video=render(tracks, self.source.frames), meta={"fps": self.source.fps})
