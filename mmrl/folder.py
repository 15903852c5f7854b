"""A run's folder: where things are, how metrics are written, and what a run leaves for those who read it later."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ruamel.yaml import YAML

from mmrl.errors import UserError


class RunFolder:
    """`config.yaml provenance.json rewards.json metrics.jsonl samples/ kept/ checkpoints/ summary.json report.html` below `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def provenance(self) -> Path:
        return self.path / "provenance.json"

    @property
    def rewards(self) -> Path:
        return self.path / "rewards.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def create(self, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
        """Write what a run starts with; config.yaml comes last, so that where it is the rest is."""
        self.samples.mkdir(parents=True, exist_ok=True)
        write_json(self.provenance, provenance)
        text = io.StringIO()
        YAML().dump(dict(config), text)
        write_text(self.config, text.getvalue())

    @property
    def started(self) -> bool:
        """A run in it has got as far as a line of metrics."""
        return self.metrics.is_file() and self.metrics.stat().st_size > 0

    def lock(self) -> IO[str]:
        """Claim the folder for this process until it ends (however it ends) or closes the file.

        Raises UserError when another process is still running in it, which a killed launcher may leave behind.
        """
        file = (self.path / ".lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            file.close()
            raise UserError(
                f"{self.path} is in use by a running process (pid {owner}); wait for it or stop it first"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        return file

    def keep_metrics(self, count: int) -> None:
        """Drop every line after the first `count` (what a crashed run wrote after its last checkpoint)."""
        lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True) if self.metrics.is_file() else []
        if len(lines) < count:
            raise UserError(
                f"{self.metrics} has {len(lines)} lines, but the checkpoint was written after {count}; it was edited or replaced"
            )
        write_text(self.metrics, "".join(lines[:count]))


def write_text(path: Path, text: str) -> None:
    """Replace `path` in one step, so that a reader or a crash never meets half of it."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` in one step, like `write_text`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)


def write_named(data: bytes, kind: str, folder: Path, below: str) -> str:
    """Write `below/HASH.kind` into `folder`, the name saying what is in it, so that equal files are stored once; returns it."""
    name = f"{below}/{hashlib.sha256(data).hexdigest()[:16]}.{kind}"
    path = folder / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data)
    return name


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def numbered(root: Path) -> list[Path]:
    """What is called `root/NUMBER`, the highest number first."""
    found = [path for path in root.iterdir() if path.name.isdecimal()] if root.is_dir() else []
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def claim_next(root: Path) -> Path:
    """Make `root/001`, or the first number after the highest one there, for the caller alone."""
    root.mkdir(parents=True, exist_ok=True)
    while True:
        last = max((int(path.name) for path in numbered(root)), default=0)
        folder = root / f"{last + 1:03d}"
        try:
            folder.mkdir()
        except FileExistsError:  # another run was quicker
            continue
        return folder


def unclaim(folder: Path) -> None:
    """Give a folder of `claim_next` back; one that holds anything stays."""
    with suppress(OSError):
        folder.rmdir()


def open_run(path: str | Path) -> RunFolder:
    """A finished or interrupted run's folder. Raises UserError if `path` is none."""
    folder = RunFolder(Path(path))
    if not folder.config.is_file():
        raise UserError(
            f"{folder.path} is not a run's folder (no config.yaml in it); runs are written to runs/NAME/001 unless run.dir says otherwise"
        )
    return folder
