"""The rules of the house: what is packaged, and who may import whom."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]

from mmrl import components

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "mmrl": "mmrl",
    "generative": "mmrl.generative",
    "vlm": "mmrl.vlm",
    "rewards": "mmrl.rewards",
    "data": "mmrl.data",
    "configs": "mmrl.configs",
}
FAMILIES = ("mmrl.generative", "mmrl.vlm", "mmrl.rewards", "mmrl.data")


def test_every_package_folder_is_listed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = set()
    for folder, name in FOLDERS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            inner = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join((name, *inner)))
    assert found == listed


def imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_go_one_way(folder: str) -> None:
    """The core imports no family; families, rewards and data do not import each other."""
    own = FOLDERS[folder]
    forbidden = [name for name in FAMILIES if name != own]
    for file in (ROOT / folder).rglob("*.py"):
        for name in imports(file):
            assert not any(name == bad or name.startswith(f"{bad}.") for bad in forbidden), f"{file} imports {name}"


def test_every_component_resolves_to_a_documented_component() -> None:
    for kind in components.kinds():
        for name, path in components.table(kind).items():
            module, _, attribute = path.partition(":")
            found = getattr(importlib.import_module(module), attribute)
            assert isinstance(found, type) and issubclass(found, components.Component), f"{kind} {name}"
            assert found.__doc__ and found.__doc__ != components.Component.__doc__, f"{kind} {name} has no docstring"


def test_no_mutable_module_state_is_needed_to_register_a_component() -> None:
    with pytest.raises(ValueError, match="did you mean 'group'"):
        components.resolve("advantage", "grup")


def test_the_command_line_answers_without_torch() -> None:
    code = "import sys, mmrl.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
