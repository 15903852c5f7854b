"""Supervised examples from files: pictures with their captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from mmrl.data.files import DataPath, existing, read_json_lines
from mmrl.data.images import SUFFIXES, read_image
from mmrl.data.records import Columns, prompt_of
from mmrl.data.source import Epochs, ExampleSource, check_ids
from mmrl.data.split import Split, SplitOption
from mmrl.errors import UserError
from mmrl.rollout import Prompt, Sample


class Pictures:
    """Captioned picture files, each read when it is asked for."""

    def __init__(self, pairs: Sequence[tuple[Prompt, Path]], split: Split, size: int | None) -> None:
        prompts = [prompt for prompt, _ in pairs]
        check_ids(prompts)
        self.pairs = [pairs[position] for position in split.choose(prompts)]
        self.size = size

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, position: int) -> Sample:
        prompt, path = self.pairs[position]
        return Sample(prompt, images=(read_image(path, self.size),))


class FolderExamples(ExampleSource):
    """A folder (and those below it) of pictures, each beside a text file of the same name: `cat.png` and `cat.txt`."""

    path: DataPath
    size: int | None = Field(default=None, ge=1)
    """Scale the shorter side to this many pixels and cut out the middle; without it pictures keep their sizes."""
    split: SplitOption = Split()

    def open(self, seed: int) -> Epochs:
        """Endless passes over the pictures. Raises UserError for a missing or empty folder and for missing captions."""
        folder = existing(self.path, folder=True)
        pairs = []
        for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
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
            raise UserError(f"no pictures in {folder} (looked for {', '.join(SUFFIXES)})")
        return Epochs(Pictures(pairs, self.split, self.size), seed)


class JsonlExamples(ExampleSource):
    """One JSON object per line: `{"path": "cat.png", "text": "a cat"}`; paths are relative to the file's folder."""

    path: DataPath
    size: int | None = Field(default=None, ge=1)
    """Scale the shorter side to this many pixels and cut out the middle; without it pictures keep their sizes."""
    split: SplitOption = Split()
    picture: str = "path"
    """The key that holds the picture's file."""
    columns: Columns = Columns()
    skip_empty: bool = False

    def open(self, seed: int) -> Epochs:
        """Endless passes over the pictures. Raises UserError with file and line for whatever cannot be an example."""
        pairs = []
        folder = self.path.absolute().parent
        for number, record in read_json_lines(self.path, self.skip_empty):
            where = f"{self.path.absolute()}:{number}"
            name = record.get(self.picture)
            if not isinstance(name, str):
                raise UserError(f"{where}: '{self.picture}' is {name!r}; expected the file name of a picture")
            if not (folder / name).is_file():
                raise UserError(f"{where}: no file {folder / name}")
            pairs.append((prompt_of(record, self.columns, where, f"{self.path.name}:{number}", folder), folder / name))
        if not pairs:
            raise UserError(f"{self.path.absolute()} holds no examples; expected one JSON object per line")
        return Epochs(Pictures(pairs, self.split, self.size), seed)
