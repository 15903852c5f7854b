"""Where a run comes from, with and without git."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime
from pathlib import Path

import pytest
import torch

from mmrl import provenance


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_is_json_and_complete() -> None:
    found = json.loads(json.dumps(provenance.collect({"run": {"seed": 3}}, 3, 2)))
    assert found["seed"] == 3 and found["processes"] == 2 and found["threads"] == torch.get_num_threads()
    assert (
        found["packages"]["torch"] == torch.__version__.split("+")[0] or found["packages"]["torch"] == torch.__version__
    )
    assert {"diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy"} <= set(found["packages"])
    assert datetime.fromisoformat(found["started"]).utcoffset() is not None
    assert found["hardware"]["cores"] >= 1 and found["hardware"]["memory_gb"] > 0 and len(found["config_sha256"]) == 64


def test_config_hash_depends_on_values_and_not_on_order() -> None:
    assert provenance.config_hash({"a": 1, "b": 2}) == provenance.config_hash({"b": 2, "a": 1})
    assert provenance.config_hash({"a": 1}) != provenance.config_hash({"a": 2})


def test_git_state_clean_and_dirty(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / "a.txt").write_text("one")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    clean = provenance.repository(tmp_path)
    assert clean is not None and clean["dirty"] is False and clean["diff_sha256"] is None and len(clean["commit"]) == 40
    hashes = set()
    for text in ("two", "three"):
        (tmp_path / "a.txt").write_text(text)
        dirty = provenance.repository(tmp_path)
        assert dirty is not None and dirty["dirty"] is True and dirty["commit"] == clean["commit"]
        hashes.add(dirty["diff_sha256"])
    assert len(hashes) == 2 and None not in hashes


def test_works_outside_a_repository_and_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.repository(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert provenance.repository(Path.cwd()) is None
    assert provenance.collect({}, 0, 1)["git"] is None
