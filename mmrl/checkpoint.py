"""Checkpoints: written beside, synced, then renamed, so that a half-written one is never seen; safetensors and JSON only."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmrl.errors import RunError

PATTERN = re.compile(r"step_(\d{6,})")
STATE = "state.json"


def save(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep_last: int
) -> Path:
    """Write `folder/step_000100` holding one safetensors file per entry of `tensors` and `state.json`.

    Raises RunError when the disk is full; what was written of this checkpoint is removed and earlier ones stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step_{step:06d}"
    if target.exists():
        return target
    temporary = folder / f".tmp_step_{step:06d}_{os.getpid()}"
    for stale in folder.glob(".tmp_step_*"):
        shutil.rmtree(stale, ignore_errors=True)
    try:
        temporary.mkdir()
        for name, group in tensors.items():
            save_file(_separate(group), temporary / f"{name}.safetensors")
        (temporary / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(_explain(error, target, tensors, folder)) from error
    temporary.rename(target)
    _sync(folder)
    for old in complete(folder)[:-keep_last]:
        going = old.rename(folder / f".tmp_{old.name}_old")  # a half-removed one must not look complete
        shutil.rmtree(going)
    return target


def _separate(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU that share no memory (tied weights are written twice)."""
    seen: set[int] = set()
    separate = {}
    for key, value in group.items():
        tensor = value.detach().cpu().contiguous()
        separate[key] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return separate


def complete(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := PATTERN.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read what `save` wrote: tensors by file and the state. Raises RunError naming an unreadable file."""
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(
            f"checkpoint {path} cannot be read ({error}); delete that folder to resume from the one before it"
        ) from error
    return tensors, state


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(error: Exception, target: Path, tensors: Mapping[str, Mapping[str, Tensor]], folder: Path) -> str:
    kept = complete(folder)
    last = f"the last good one is {kept[-1]}" if kept else "there is no earlier one"
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    if full:
        need = sum(value.numel() * value.element_size() for group in tensors.values() for value in group.values())
        free = shutil.disk_usage(folder).free
        return (
            f"disk full while writing {target}: it needs {need / 1e6:.0f} MB, {free / 1e6:.0f} MB are free; {last}. "
            "Free some space and continue with --resume"
        )
    return f"cannot write {target}: {error}; {last}"
