"""Where a run comes from: code, packages, machine, seed, time and command line."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from mmrl._version import __version__

GIT_SECONDS = 20


def collect(config: Mapping[str, Any], seed: int, world: int) -> dict[str, Any]:
    """Everything that is known about a run's origin, ready for JSON. `config` is the resolved one.

    Works without git and outside a repository: `git` is None then.
    """
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "directory": os.getcwd(),
        "mmrl": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages(),
        "git": repository(Path.cwd()),
        "hardware": hardware(),
        "seed": seed,
        "processes": world,
        "threads": torch.get_num_threads(),
        "config_sha256": config_hash(config),
    }


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of the resolved config; the order of its keys does not matter."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def packages() -> dict[str, str]:
    """Installed versions of everything that mmrl depends on, extras included."""
    try:
        required = metadata.requires("mmrl") or []
    except metadata.PackageNotFoundError:
        required = ["torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy"]
    found: dict[str, str] = {}
    for line in required:
        name = re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def repository(directory: Path) -> dict[str, Any] | None:
    """The git state around `directory`: commit, branch, whether files differ, and a hash of the difference."""
    commit = _git(directory, "rev-parse", "HEAD")
    if commit is None:
        return None
    status = _git(directory, "status", "--porcelain")
    diff = _git(directory, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv")
    branch = _git(directory, "rev-parse", "--abbrev-ref", "HEAD")
    return {
        "commit": commit.decode().strip(),
        "branch": branch.decode(errors="replace").strip() if branch is not None else None,
        "dirty": bool(status) if status is not None else None,
        "diff_sha256": hashlib.sha256(diff).hexdigest() if diff else None,
    }


def _git(directory: Path, *arguments: str) -> bytes | None:
    """Output of a git command, None if it failed for whatever reason."""
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=GIT_SECONDS, env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def hardware() -> dict[str, Any]:
    """CPU model, cores, memory in GB, and the CUDA devices."""
    return {
        "cpu": cpu_model(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "threads": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpus": gpus(),
    }


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def gpus() -> list[dict[str, Any]]:
    """Name and memory of every CUDA device that torch sees; empty without one."""
    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [{"name": device.name, "memory_gb": round(device.total_memory / 1e9, 1)} for device in found]
