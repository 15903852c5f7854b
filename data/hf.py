"""Prompts from a Hugging Face dataset: by its name on the hub, a file, or a folder written by `save_to_disk`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from mmrl.data.files import FORMATS, Dataset, existing, is_local
from mmrl.data.records import Columns, prompt_of
from mmrl.data.source import PromptSource
from mmrl.errors import UserError
from mmrl.rollout import Prompt


class HfPrompts(PromptSource):
    """Rows of a dataset; without an id column a prompt's id is "NAME:ROW" (from 0). All rows are held in memory.

    `rows` is the dataset's own split ("train", "test[:100]"); `split` then divides these rows further.
    """

    dataset: Dataset
    """A name on the hub, a .csv, .tsv, .json, .jsonl, .parquet or .arrow file, or a folder made by `save_to_disk`."""
    config: str | None = None
    """The configuration of a hub dataset that has several."""
    revision: str | None = None
    rows: str = "train"
    columns: Columns = Field(default_factory=Columns)

    def read(self) -> list[Prompt]:
        """All prompts. Raises UserError for a dataset, rows or a column that is not there, and for bad rows."""
        data = self.table()
        name = Path(self.dataset).name
        self.columns.check(data.column_names, self.dataset)
        folder = self.folder()
        return [
            prompt_of(record, self.columns, f"{self.dataset}[{row}]", f"{name}:{row}", folder)
            for row, record in enumerate(data)
        ]

    def folder(self) -> Path | None:
        """Where files that rows name are looked up: beside the dataset; None for one of the hub."""
        return Path(self.dataset).absolute().parent if is_local(self.dataset) else None

    def table(self) -> Any:
        """The rows. Raises UserError for a dataset that cannot be loaded."""
        import datasets  # takes a second, and only this source needs it

        path, local = Path(self.dataset), is_local(self.dataset)
        if local and not path.is_dir():
            existing(path)
            if path.suffix not in FORMATS:
                raise UserError(
                    f"{path.absolute()}: unknown kind of file '{path.suffix}'; expected {', '.join(FORMATS)}"
                )
        try:
            if local and path.is_dir():
                data = datasets.load_from_disk(str(path))
                if isinstance(data, datasets.DatasetDict):
                    if self.rows not in data:
                        raise UserError(f"{path.absolute()} has no rows '{self.rows}' (there: {', '.join(data)})")
                    data = data[self.rows]
                return data
            if local:
                more = {"sep": "\t"} if path.suffix == ".tsv" else {}
                return datasets.load_dataset(FORMATS[path.suffix], data_files=str(path), split=self.rows, **more)
            return datasets.load_dataset(self.dataset, self.config, split=self.rows, revision=self.revision)
        except UserError:
            raise
        except Exception as error:  # the library raises a dozen types; each message's first line says what is wrong
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            what = path.absolute() if local else f"the hub dataset '{self.dataset}'"
            raise UserError(f"cannot load {what}: {reason}") from error
