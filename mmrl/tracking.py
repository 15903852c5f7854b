"""What a run says while it runs: metrics.jsonl, the progress bar, a few lines of text, and accelerate's trackers."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from PIL import Image
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mmrl.distributed import Group
from mmrl.errors import UserError
from mmrl.folder import RunFolder

SHOWN = ("reward", "loss")


class Tracking:
    """Only rank 0 writes and prints; every rank may call. Bars are drawn on a terminal and left out under CI."""

    def __init__(
        self,
        folder: RunFolder,
        group: Group,
        trackers: tuple[str, ...],
        config: Mapping[str, Any],
        console: Console | None = None,
    ) -> None:
        self.folder, self.group = folder, group
        self.console = console or Console(stderr=True)
        self.bars = self.console.is_terminal and not os.environ.get("CI")
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self.accelerator: Accelerator | None = None
        if trackers:
            _refuse_missing(trackers)
            self.accelerator = Accelerator(
                cpu=group.device.type == "cpu", log_with=list(trackers), project_dir=str(folder.path)
            )
            self.accelerator.init_trackers("trackers", config=flatten(config))

    def say(self, text: str) -> None:
        if self.group.main:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, steps: int, done: int) -> Iterator[None]:
        """Show the progress of one stage."""
        if not self.group.main or not self.bars:
            self.say(f"{name}: {steps - done} steps")
            yield
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as self.progress:
            self.task = self.progress.add_task(name, total=steps, completed=done, shown="")
            try:
                yield
            finally:
                self.progress, self.task = None, None

    def step(self, line: Mapping[str, Any]) -> None:
        """Append one object to metrics.jsonl, move the bar, and tell the trackers."""
        if not self.group.main:
            return
        with self.folder.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(line), allow_nan=False) + "\n")
        if self.progress is not None and self.task is not None:
            shown = "  ".join(
                f"{key.removeprefix('reward/')} {value:.3f}" for key, value in line.items() if _shown(key, value)
            )
            self.progress.update(self.task, completed=line["step"], shown=shown)
        values = {
            f"{line['stage']}/{key}": value
            for key, value in {**line, **line["time"]}.items()
            if isinstance(value, (int, float))
        }
        if self.accelerator is not None:
            self.accelerator.log(values, step=line["total"])

    def sync(self) -> None:
        """Make sure that the lines written so far outlive a power loss; a checkpoint counts on them."""
        if self.folder.metrics.exists():
            with self.folder.metrics.open("rb") as file:
                os.fsync(file.fileno())

    def evaluated(self, when: str, metrics: Mapping[str, float]) -> None:
        self.say(f"held-out {when}: " + "  ".join(f"{key} {value:.3f}" for key, value in metrics.items()))

    def picture(self, name: str, path: Path, step: int) -> None:
        """Send a picture grid to the trackers that take images."""
        if self.accelerator is None:
            return
        pixels = np.asarray(Image.open(path).convert("RGB"))[None]
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({name: pixels}, step=step, **options)

    def close(self) -> None:
        if self.accelerator is not None:
            self.accelerator.end_training()


def _refuse_missing(trackers: tuple[str, ...]) -> None:
    available = [str(tracker) for tracker in get_available_trackers()]
    missing = [tracker for tracker in trackers if tracker not in available]
    if missing:
        raise UserError(
            f"run.trackers names {', '.join(missing)}, which is not installed; available here: {', '.join(available) or 'none'} "
            f"(pip install {missing[0]})"
        )


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(key: str, value: Any) -> bool:
    return (key in SHOWN or (key.startswith("reward/") and key.count("/") == 1)) and isinstance(value, float)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`; values that trackers cannot hold become text."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat
