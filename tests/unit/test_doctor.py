"""The doctor names what is missing or broken, and survives it."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

import pytest
from rich.console import Console

from mmrl import doctor
from mmrl.doctor import Check, Need, Probe

REQUIRES = [
    "torch>=2.11",
    "numpy>=999",
    "nothere>=1",
    'gone; extra == "serve"',
    'rich>=1; extra == "ocr"',
    'numpy; platform_machine == "pdp11" and extra == "video"',
]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    doctor._defect.cache_clear()


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_required_packages_that_are_missing_old_or_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: REQUIRES)
    monkeypatch.setattr(
        doctor, "probe", lambda names: {name: Probe(name != "torch", "ImportError: x.so") for name in names}
    )
    found = by_name(doctor._required())
    assert found["torch"].state == "problem" and "cannot be imported: ImportError: x.so" in found["torch"].found
    assert found["numpy"].state == "problem" and "needed is >=999" in found["numpy"].found
    assert found["nothere"].advice == 'pip install "nothere>=1"'


def test_extras_are_optional_and_come_with_their_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: REQUIRES)
    found = by_name(doctor._extras())
    assert found["serve"].state == "note" and found["serve"].advice == 'pip install "mmrl[serve]"'
    assert found["ocr"].state == "ok" and "video" not in found
    assert all(check.state != "problem" for check in found.values())


def test_a_broken_optional_package_is_named_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda name: "1.0")
    monkeypatch.setattr(
        doctor, "probe", lambda names: {name: Probe(False, "OSError: undefined symbol") for name in names}
    )
    check = doctor._optional("video", "decord", "decord", "")
    assert check.state == "warning" and "OSError: undefined symbol" in check.found


def test_probe_survives_errors_exits_and_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raises_it.py").write_text("raise RuntimeError('first\\nsecond')")
    (tmp_path / "leaves_it.py").write_text("import sys; sys.exit(3)")
    (tmp_path / "kills_it.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    (tmp_path / "prints_it.py").write_text("print('mmrl-probe? no', end='')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = doctor.probe(["json", "raises_it", "leaves_it", "kills_it", "nowhere_at_all", "prints_it"])
    assert found["json"].works and found["prints_it"].works
    assert found["raises_it"].error == "RuntimeError: first"
    assert found["leaves_it"].error == "SystemExit: 3"
    assert "exit code -11" in found["kills_it"].error
    assert found["nowhere_at_all"].error.startswith("ModuleNotFoundError")


def test_kernels_built_for_another_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "kernels_for_it"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "cpp_lib.json").write_text(json.dumps({"version": {"torch": "1.2.0+cu1"}}))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "built for torch 1.2.0+cu1" in (doctor.torch_mismatch("kernels_for_it") or "")
    assert doctor.torch_mismatch("json") is None
    sys.modules.pop("kernels_for_it", None)


def test_a_check_that_raises_is_a_warning() -> None:
    def broken() -> list[Check]:
        raise OSError("libcuda.so: no such file")

    assert doctor._guarded("torch", broken) == [
        Check("torch", "torch", "warning", "could not be checked: OSError: libcuda.so: no such file")
    ]


def test_not_installed_is_one_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    assert [check.state for check in doctor._required()] == ["problem"] and doctor.needs() == {}


def test_exit_code_follows_required_things_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [
        Check("a", "one", "ok", "1"),
        Check("b", "two", "warning", "w"),
        Check("b", "three", "note", "n", 'pip install "mmrl[x]"'),
    ]
    monkeypatch.setattr(doctor, "diagnose", lambda: checks)
    console = Console(record=True, width=100)
    assert doctor.show(console) == 0
    text = console.export_text()
    assert 'pip install "mmrl[x]"' in text and "ready to train (1 warning)" in text
    checks.append(Check("b", "four", "problem", "gone"))
    assert doctor.show(console) == 1 and "1 problem: four" in console.export_text()


def test_import_names() -> None:
    names = {
        name: Need(name, "", None, True).module
        for name in ("Pillow", "ruamel.yaml", "qwen-vl-utils", "open_clip_torch")
    }
    assert list(names.values()) == ["PIL", "ruamel.yaml", "qwen_vl_utils", "open_clip"]


@pytest.mark.slow
def test_this_machine_is_fit() -> None:
    """The real thing: this environment passes its own tests, so nothing required may be a problem."""
    checks = doctor.diagnose()
    assert not [check for check in checks if check.state == "problem"]
    assert {"torch", "sdpa", "bf16", "gloo", "decord", "serve", "disk", "memory", "cores"} <= set(by_name(checks))
