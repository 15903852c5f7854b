"""Files that users name: found, decoded and reported with absolute paths and line numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ValidationInfo

from mmrl.errors import UserError


def _from_base(path: Path, info: ValidationInfo) -> Path:
    path = path.expanduser()
    base = (info.context or {}).get("base")
    beside = None if base is None else Path(base) / path
    return (beside if beside is not None and beside.exists() else path).absolute()


DataPath = Annotated[Path, AfterValidator(_from_base)]
"""A path option. A relative one is taken from the config's folder (validation context `base`) or the working folder."""


FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".arrow": "arrow"}
"""Files that hold a dataset -> how the datasets library names their kind."""


def is_local(dataset: str) -> bool:
    """Whether a dataset is a file or folder rather than a name on the hub."""
    path = Path(dataset).expanduser()
    return path.suffix in FORMATS or path.exists() or path.is_absolute() or dataset.startswith((".", "~"))


def _dataset_from_base(dataset: str, info: ValidationInfo) -> str:
    path = _from_base(Path(dataset), info)
    return str(path) if path.exists() or is_local(dataset) else dataset


Dataset = Annotated[str, AfterValidator(_dataset_from_base)]
"""A dataset option: a name on the hub, or a file or folder, which is looked for as a `DataPath` is."""


def existing(path: Path, folder: bool = False) -> Path:
    """The absolute path of a file (or folder) that exists. Raises UserError that names the absolute path."""
    path = path.absolute()
    if not path.exists():
        raise UserError(f"no {'folder' if folder else 'file'} {path}")
    if path.is_dir() != folder:
        raise UserError(f"{path} is a {'file' if folder else 'folder'}; expected a {'folder' if folder else 'file'}")
    return path


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text without line end) of every line of a UTF-8 file; a line end at the end starts no new one."""
    lines = existing(path).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line:
            return
        try:
            yield number, line.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path.absolute()}:{number}: not UTF-8 text (byte {error.start}: {error.reason}); save it as UTF-8"
            ) from None


def read_json_lines(path: Path, skip_empty: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line of a JSON-lines file. Raises UserError with file and line."""
    for number, line in read_lines(path):
        where = f"{path.absolute()}:{number}"
        if not line.strip():
            if skip_empty:
                continue
            raise UserError(f"{where}: empty line; remove it or set skip_empty: true")
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{where}: not JSON: {error.msg} at column {error.colno}; expected one object per line"
            ) from None
        if not isinstance(record, dict):
            raise UserError(
                f'{where}: got a JSON {type(record).__name__}; expected an object such as {{"text": "a red circle"}}'
            )
        yield number, record
