"""Rows of a JSON-lines file or of a Hugging Face dataset as supervised examples."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import model_validator

from mmrl.data.files import DataPath, Dataset, read_json_lines
from mmrl.data.hf import HfPrompts
from mmrl.data.source import Epochs, ExampleSource, check_ids
from mmrl.data.split import Split, SplitOption
from mmrl.errors import UserError
from mmrl.rollout import Prompt, Sample


@dataclass(frozen=True)
class Row:
    """One record: `where` ("chat.jsonl:3") starts every error, `folder` is where its files are looked up."""

    record: Mapping[str, Any]
    where: str
    default_id: str
    folder: Path | None


class RowExamples(ExampleSource):
    """Base of examples that are rows: an author writes `sample`. All rows are held in memory, files are named only."""

    path: DataPath | None = None
    """A JSON-lines file; its media are looked up beside it."""
    dataset: Dataset | None = None
    """Or a dataset: a name on the hub, a .csv, .tsv, .json, .jsonl, .parquet or .arrow file, or a `save_to_disk` folder."""
    config: str | None = None
    """The configuration of a hub dataset that has several."""
    revision: str | None = None
    rows: str = "train"
    """The dataset's own split ("train", "test[:100]")."""
    split: SplitOption = Split()
    skip_empty: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> RowExamples:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("expected either path (a JSON-lines file) or dataset")
        return self

    @abstractmethod
    def sample(self, row: Row) -> Sample:
        """The example of one row. Raises UserError that starts with `row.where`."""

    def read(self) -> Iterator[Row]:
        """Every row in order. Raises UserError for a file or dataset that cannot be read."""
        if self.path is not None:
            for number, record in read_json_lines(self.path, self.skip_empty):
                where = f"{self.path.absolute()}:{number}"
                yield Row(record, where, f"{self.path.name}:{number}", self.path.absolute().parent)
            return
        assert self.dataset is not None
        source = HfPrompts(dataset=self.dataset, config=self.config, revision=self.revision, rows=self.rows)
        for number, record in enumerate(source.table()):
            yield Row(record, f"{self.dataset}[{number}]", f"{Path(self.dataset).name}:{number}", source.folder())

    def open(self, seed: int) -> Epochs:
        """Endless passes over the rows. Raises UserError for whatever cannot be an example."""
        samples = [self.sample(row) for row in self.read()]
        if not samples:
            raise UserError(f"{self.path.absolute() if self.path else self.dataset} holds no examples")
        check_ids([sample.prompt for sample in samples])
        return Epochs(_Chosen([samples[k] for k in self.split.choose([sample.prompt for sample in samples])]), seed)


class _Chosen:
    """Samples that are copied when they are given away, as a sample may be written into."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self.prompts: Sequence[Prompt] = [sample.prompt for sample in samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> Sample:
        sample = self.samples[position]
        return dataclasses.replace(sample, meta=dict(sample.meta))
