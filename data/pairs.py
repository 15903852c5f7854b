"""Supervised examples from files: pictures and videos with their captions, or with instructions and source pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from mmrl.data.files import DataPath, existing, read_json_lines
from mmrl.data.images import SUFFIXES, fitted, read_image
from mmrl.data.records import Columns, prompt_of
from mmrl.data.source import Epochs, ExampleSource, check_ids
from mmrl.data.split import Split, SplitOption
from mmrl.errors import UserError
from mmrl.media import is_image
from mmrl.rollout import Prompt, Sample
from mmrl.video import SUFFIXES as VIDEOS
from mmrl.video import read_clip


class PairExamples(ExampleSource):
    """Base of examples that are files, each read when it is asked for."""

    path: DataPath
    size: int | None = Field(default=None, ge=1)
    """Scale the shorter side to this many pixels and cut out the middle, also of source pictures; without it they keep their
    sizes."""
    frames: PositiveInt | None = None
    """Of a video the first so many; without it all of them."""
    fps: PositiveFloat | None = None
    """Frames per second at which a video is read; without it its own."""
    split: SplitOption = Split()

    def read(self, prompt: Prompt, path: Path) -> Sample:
        """One example. Raises UserError that names the file that cannot be read."""
        if self.size is not None:
            given = tuple(_given(item, self.size) for item in prompt.media)
            prompt = dataclasses.replace(prompt, media=given)
        if is_image(str(path)):
            return Sample(prompt, images=(read_image(path, self.size),))
        video, fps = read_clip(path, self.frames, self.fps)
        if self.size is not None:
            video = np.stack([fitted(frame, self.size) for frame in video])
        return Sample(prompt, video=video, meta={"fps": fps})


def _given(item: Any, size: int) -> Any:
    """A picture that a prompt shows, fitted; a video as it is."""
    if not is_image(item):
        return item
    return fitted(read_image(Path(item)) if isinstance(item, str) else item, size)


class Pairs:
    """Prompts with the files of what is to be made of them."""

    def __init__(self, pairs: Sequence[tuple[Prompt, Path]], source: PairExamples) -> None:
        prompts = [prompt for prompt, _ in pairs]
        check_ids(prompts)
        self.pairs = [pairs[position] for position in source.split.choose(prompts)]
        self.prompts: Sequence[Prompt] = [prompt for prompt, _ in self.pairs]
        self.source = source

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, position: int) -> Sample:
        return self.source.read(*self.pairs[position])


class FolderExamples(PairExamples):
    """A folder (and those below it) of pictures or videos, each beside a text file of the same name: `cat.png` and `cat.txt`."""

    def open(self, seed: int) -> Epochs:
        """Endless passes over the files. Raises UserError for a missing or empty folder and for missing captions."""
        folder = existing(self.path, folder=True)
        pairs = []
        for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in (*SUFFIXES, *VIDEOS)):
            caption = path.with_suffix(".txt")
            if not caption.is_file():
                raise UserError(f"{path} has no caption; expected a text file {caption.name} beside it")
            try:
                text = " ".join(caption.read_text("utf-8-sig").split())
            except UnicodeDecodeError:
                raise UserError(f"{caption} is not UTF-8 text") from None
            if not text:
                raise UserError(f"{caption} is empty; expected the caption of {path.name}")
            name = path.relative_to(folder).as_posix()
            pairs.append((Prompt(id=name, text=text, meta={"source": name}), path))
        if not pairs:
            raise UserError(f"no pictures or videos in {folder} (looked for {', '.join((*SUFFIXES, *VIDEOS))})")
        return Epochs(Pairs(pairs, self), seed)


class JsonlExamples(PairExamples):
    """One JSON object per line: `{"path": "cat.png", "text": "a cat"}`; paths are relative to the file's folder.

    With `media`, the source picture of an edit or the first frame of a video, it is a line about an edit:
    `{"path": "night.png", "text": "make it night", "media": "day.png"}`.
    """

    picture: str = "path"
    """The key that holds the file of the picture or video."""
    columns: Columns = Columns()
    skip_empty: bool = False

    def open(self, seed: int) -> Epochs:
        """Endless passes over the files. Raises UserError with file and line for whatever cannot be an example."""
        pairs = []
        folder = self.path.absolute().parent
        for number, record in read_json_lines(self.path, self.skip_empty):
            where = f"{self.path.absolute()}:{number}"
            name = record.get(self.picture)
            if not isinstance(name, str):
                raise UserError(f"{where}: '{self.picture}' is {name!r}; expected the file name of a picture or video")
            if not (folder / name).is_file():
                raise UserError(f"{where}: no file {folder / name}")
            pairs.append((prompt_of(record, self.columns, where, f"{self.path.name}:{number}", folder), folder / name))
        if not pairs:
            raise UserError(f"{self.path.absolute()} holds no examples; expected one JSON object per line")
        return Epochs(Pairs(pairs, self), seed)
