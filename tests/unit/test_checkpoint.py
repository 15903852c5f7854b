"""Checkpoints appear whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from mmrl import checkpoint
from mmrl.errors import RunError


def write(folder: Path, step: int, keep_last: int = 2) -> Path:
    return checkpoint.save(folder, step, {"trainable": {"w": torch.full((3,), float(step))}}, {"step": step}, keep_last)


def test_round_trip_and_keep_last(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    assert [path.name for path in checkpoint.complete(tmp_path)] == ["step_000002", "step_000003"]
    tensors, state = checkpoint.load(checkpoint.complete(tmp_path)[-1])
    assert state == {"step": 3} and torch.equal(tensors["trainable"]["w"], torch.full((3,), 3.0))


def test_steps_beyond_six_digits_stay_in_order(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000):
        write(tmp_path, step)
    assert [path.name for path in checkpoint.complete(tmp_path)] == ["step_999999", "step_1000000"]


def test_half_written_one_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1)

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_sync", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 2)
    assert [path.name for path in checkpoint.complete(tmp_path)] == ["step_000001"]
    assert list(tmp_path.glob(".tmp_step_*"))
    monkeypatch.undo()
    write(tmp_path, 2)
    assert not list(tmp_path.glob(".tmp_step_*"))


def test_disk_full_is_one_line_and_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(RunError) as caught:
        write(tmp_path, 2)
    message = str(caught.value)
    assert "disk full" in message and "step_000001" in message and "--resume" in message and "\n" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001"]


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    (path / "trainable.safetensors").write_bytes(b"nonsense")
    with pytest.raises(RunError, match="step_000001 cannot be read"):
        checkpoint.load(path)
