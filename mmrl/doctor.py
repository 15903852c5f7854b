"""Is this machine fit for mmrl: packages, device, kernels, codecs, space; and what to install for what is missing."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmrl._version import __version__
from mmrl.terminal import show_table

State = Literal["ok", "note", "warning", "problem"]
MARKS: dict[State, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "note": ("–", "dim"),
    "warning": ("warning", "yellow"),
    "problem": ("PROBLEM", "bold red"),
}
MODULES = {"pillow": "PIL", "protobuf": "google.protobuf", "open-clip-torch": "open_clip"}
"""Import names that are not the package's own name with underscores."""
IMPORT_SECONDS = 180
CODECS = ("decord", "torchcodec", "av")
KERNELS = {"flash_attn": "flash-attn", "xformers": "xformers"}
LOW_DISK_GB, LOW_MEMORY_GB = 10, 4


@dataclass(frozen=True)
class Check:
    """One line of the table. Only something required can be a `problem`; `note` is an optional thing that is not there."""

    group: str
    name: str
    state: State
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Need:
    """A package that mmrl's own metadata asks for. `version` is the installed one, or None."""

    name: str
    specifier: str
    version: str | None
    new_enough: bool

    @property
    def module(self) -> str:
        """What to import."""
        plain = re.sub(r"[-_.]+", "-", self.name).lower()
        return MODULES.get(plain, self.name if "." in self.name else self.name.replace("-", "_"))


@dataclass(frozen=True)
class Probe:
    """Whether a module can be imported, and the line that says why not."""

    works: bool
    error: str = ""


def diagnose() -> list[Check]:
    """Every check. Never raises: a missing or broken package is a line of the result."""
    checks: list[Check] = []
    for title, check in (
        ("python", _python),
        ("required packages", _required),
        ("torch", _torch),
        ("attention", _attention),
        ("video", _video),
        ("extras", _extras),
        ("machine", _machine),
    ):
        checks += _guarded(title, check)
    return checks


def show(console: Console) -> int:
    """Print the table. Returns the exit code: 1 if something required is missing or broken, else 0."""
    with console.status("looking around"):
        checks = diagnose()
    if console.is_terminal:
        _show_groups(checks, console)
    else:
        rows = [(check.group, check.name, check.state, check.found, check.advice) for check in checks]
        show_table(console, ("group", "name", "state", "found", "advice"), rows)
    problems = [check for check in checks if check.state == "problem"]
    warnings = sum(check.state == "warning" for check in checks)
    names = ", ".join(check.name for check in problems)
    verdict = f"{_count(len(problems), 'problem')}: {names}" if problems else "ready to train"
    console.print(Text(f"\n{verdict}" + (f" ({_count(warnings, 'warning')})" if warnings else ""),
                       style="bold red" if problems else "bold green"))  # fmt: skip
    return 1 if problems else 0


def _show_groups(checks: Sequence[Check], console: Console) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    group = ""
    for check in checks:
        if check.group != group:
            if group:
                table.add_row("")
            table.add_row(Text(check.group, style="bold"))
            group = check.group
        word, style = MARKS[check.state]
        found = Text(check.found)
        if check.advice:
            found.append(f"\n{check.advice}", style="cyan" if check.advice.startswith("pip ") else "dim")
        table.add_row(Text(f"  {check.name}"), Text(word, style=style), found)
    console.print(table)


def _count(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")


def _guarded(group: str, check: Callable[[], list[Check]]) -> list[Check]:
    try:
        return check()
    except Exception as error:  # a broken library may raise anything
        return [Check(group, group, "warning", f"could not be checked: {first_line(error)}")]


def _python() -> list[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    enough = sys.version_info >= (3, 10)
    return [
        Check("python", "python", "ok" if enough else "problem", version, "" if enough else "mmrl needs Python 3.10"),
        Check("python", "mmrl", "ok", __version__),
    ]


def _required() -> list[Check]:
    group = "required packages"
    wanted = needs().get("", [])
    if not wanted:
        return [Check(group, "mmrl", "problem", "not installed, so its requirements are unknown", "pip install -e .")]
    results = probe([need.module for need in wanted])
    return [_required_one(group, need, results[need.module]) for need in wanted]


def _required_one(group: str, need: Need, result: Probe) -> Check:
    if need.version is None:
        return Check(group, need.name, "problem", "missing", f'pip install "{need.name}{need.specifier}"')
    if not need.new_enough:
        advice = f'pip install --upgrade "{need.name}{need.specifier}"'
        return Check(group, need.name, "problem", f"{need.version}, needed is {need.specifier}", advice)
    if not result.works:
        return Check(group, need.name, "problem", f"{need.version} cannot be imported: {result.error}")
    return Check(group, need.name, "ok", need.version + (f" ({need.specifier})" if need.specifier else ""))


def _torch() -> list[Check]:
    import torch

    group, checks = "torch", []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            checks.append(Check(group, f"cuda:{index}", "ok", f"{device.name}, {device.total_memory / 1e9:.0f} GB"))
    elif shutil.which("nvidia-smi"):
        built = torch.version.cuda or "no CUDA"
        found = f"nvidia-smi is here, but torch {torch.__version__} (built for {built}) finds no device"
        checks.append(Check(group, "cuda", "warning", found, "compare the driver's CUDA version with torch's"))
    else:
        checks.append(Check(group, "device", "note", "no CUDA device: the CPU is used"))
    checks.append(Check(group, "bf16", *_bf16(torch)))
    if not torch.distributed.is_available():
        return [*checks, Check(group, "distributed", "warning", "not in this build of torch: one process only")]
    for name, there in (
        ("gloo", torch.distributed.is_gloo_available()),
        ("nccl", torch.distributed.is_nccl_available()),
    ):
        required = name == ("nccl" if torch.cuda.is_available() else "gloo")
        state: State = "ok" if there else "warning" if required else "note"
        checks.append(Check(group, name, state, "available" if there else "not in this build of torch"))
    return checks


def _bf16(torch: Any) -> tuple[State, str]:
    if torch.cuda.is_available():
        fine = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("ok", "native") if fine else ("warning", "not native on this device; use dtype float32 or float16")
    a = torch.ones(8, 8, dtype=torch.bfloat16)
    capability = torch.backends.cpu.get_cpu_capability()
    return ("ok", f"works on the CPU ({capability})") if float((a @ a)[0, 0]) == 8 else ("warning", "wrong results")


def _attention() -> list[Check]:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    query = torch.ones(1, 2, 16, 64, device=device, dtype=dtype)
    works = []
    for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
        backend: Any = getattr(SDPBackend, name, None)
        try:
            with sdpa_kernel([backend]):
                torch.nn.functional.scaled_dot_product_attention(query, query, query)
            works.append(name.removesuffix("_ATTENTION").lower())
        except (RuntimeError, TypeError):
            continue
    state: State = "ok" if works else "problem"
    checks = [Check("attention", "sdpa", state, f"on {device}: {', '.join(works) or 'nothing works'}")]
    return checks + [_optional("attention", name, module, _advice(name)) for module, name in KERNELS.items()]


def _video() -> list[Check]:
    return [_optional("video", name, name, "" if name == "av" else _advice(name)) for name in CODECS]


def _advice(name: str) -> str:
    extra = next((extra for extra, wanted in needs().items() if any(need.name == name for need in wanted)), None)
    return f'pip install "mmrl[{extra}]"' if extra and extra != "dev" else f"pip install {name}"


def _extras() -> list[Check]:
    """One line per extra, and one for tensorboard, which is a tracker without an extra."""
    checks = []
    for extra, wanted in needs().items():
        if extra in ("", "dev", *KERNELS.values()):
            continue
        missing = [need.name for need in wanted if need.version is None]
        old = [f"{need.name} {need.version} ({need.specifier})" for need in wanted if not need.new_enough]
        broken = [line for need in wanted if need.version and (line := _defect(need.module))]
        there = [f"{need.name} {need.version}" for need in wanted if need.version]
        advice = f'pip install "mmrl[{extra}]"'
        if old or broken:
            found = "; ".join([*(f"too old: {line}" for line in old), *broken])
            checks.append(Check("extras", extra, "warning", found, f"{advice} --upgrade" if old else ""))
        elif missing:
            checks.append(Check("extras", extra, "note", f"not installed: {', '.join(missing)}", advice))
        else:
            checks.append(Check("extras", extra, "ok", ", ".join(there)))
    return [*checks, _optional("extras", "tensorboard", "tensorboard", "pip install tensorboard")]


def _optional(group: str, name: str, module: str, advice: str) -> Check:
    version = installed(name)
    if version is None:
        return Check(group, name, "note", "not installed", advice)
    defect = _defect(module)
    return Check(group, name, "warning", f"{version}: {defect}") if defect else Check(group, name, "ok", version)


@functools.cache
def _defect(module: str) -> str | None:
    """Why an installed package is of no use, or None."""
    result = probe([module])[module]
    if not result.works:
        return f"{module} cannot be imported: {result.error}"
    return torch_mismatch(module)


def _machine() -> list[Check]:
    import psutil

    free = shutil.disk_usage(".").free / 1e9
    memory = psutil.virtual_memory()
    available = memory.available / 1e9
    disk: State = "ok" if free >= LOW_DISK_GB else "warning"
    room: State = "ok" if available >= LOW_MEMORY_GB else "warning"
    cores = f"{psutil.cpu_count(logical=False) or '?'} ({psutil.cpu_count()} threads)"
    return [
        Check("machine", "cores", "ok", cores),
        Check("machine", "memory", room, f"{available:.1f} GB available of {memory.total / 1e9:.1f} GB"),
        Check("machine", "disk", disk, f"{free:.0f} GB free here", "" if disk == "ok" else "checkpoints may not fit"),
    ]


def needs() -> dict[str, list[Need]]:
    """What this machine needs by extra, "" for what is always required; empty if mmrl is not installed."""
    try:
        lines = metadata.requires("mmrl") or []
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, list[Need]] = {}
    for line in lines:
        requirement = Requirement(line)
        extra = next(iter(re.findall(r"extra == [\"']([^\"']+)", line)), "")
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        version = installed(requirement.name)
        enough = version is None or requirement.specifier.contains(version, prereleases=True)
        found.setdefault(extra, []).append(Need(requirement.name, str(requirement.specifier), version, enough))
    return found


def installed(name: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


MARK = "mmrl-probe "
PROGRAM = """
import importlib, json, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        line = ""
    except BaseException as error:
        line = (str(error).strip().splitlines() or [""])[0]
        line = type(error).__name__ + (": " + line if line else "")
    print("\\nmmrl-probe", json.dumps([name, line]), flush=True)
"""


def probe(modules: Sequence[str]) -> dict[str, Probe]:
    """Import `modules` in a process of their own, so that one that kills its process is found out, not followed."""
    results: dict[str, Probe] = {}
    left = list(modules)
    while left:
        try:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", PROGRAM, *left],
                stdin=subprocess.DEVNULL, capture_output=True, timeout=IMPORT_SECONDS,
            )  # fmt: skip
            output, end = done.stdout, f"its import ended the process (exit code {done.returncode})"
        except subprocess.TimeoutExpired as late:
            output, end = late.stdout or b"", f"its import took more than {IMPORT_SECONDS} seconds"
        for line in output.decode(errors="replace").splitlines():
            if line.startswith(MARK):
                name, error = json.loads(line.removeprefix(MARK))
                results[name] = Probe(not error, error)
        left = [name for name in left if name not in results]
        if left:
            results[left.pop(0)] = Probe(False, end)
    return results


def torch_mismatch(module: str) -> str | None:
    """A line for a package whose kernels were compiled for another torch than the one that is here."""
    torch_here = installed("torch")
    spec = importlib.util.find_spec(module)
    if torch_here is None or spec is None or spec.origin is None:
        return None
    record = Path(spec.origin).parent / "cpp_lib.json"
    if not record.is_file():
        return None
    built = json.loads(record.read_text(encoding="utf-8")).get("version", {}).get("torch")
    if not built or _minor(built) == _minor(torch_here):
        return None
    return f"its kernels were built for torch {built}, here is torch {torch_here}; they will not be used"


def _minor(version: str) -> list[str]:
    return version.split("+")[0].split(".")[:2]


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
