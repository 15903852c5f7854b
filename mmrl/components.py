"""Names in a config -> classes.

A component is a frozen pydantic model: its fields are its options, its methods do the work. A name is looked up in the
literal `COMPONENTS` table of the folder it lives in; users write `package.module:Name`, `path/to/file.py:Name` or the
name of an installed entry point in the group `mmrl.<kind>`. Tables hold dotted paths, so that listing and checking import
only what a config names.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ConfigDict, PydanticUserError

from mmrl.errors import UserError, line_of, one_line
from mmrl.options import did_you_mean, shown

FOLDERS = (
    "mmrl.advantage",
    "mmrl.objective",
    "mmrl.curriculum",
    "mmrl.compose",
    "mmrl.generative",
    "mmrl.vlm",
    "mmrl.rewards",
    "mmrl.data",
)
"""The composition root: every folder with a `COMPONENTS: dict[kind, dict[name, "module:Class"]]` table."""


class Component(BaseModel):
    """Base of everything that a config names. Unknown options are errors; options are the declared fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, use_attribute_docstrings=True)


@functools.cache
def table(kind: str) -> dict[str, str]:
    """All built-in and installed names of one kind -> dotted path. Raises on two components of one name."""
    found: dict[str, str] = {}
    for folder in FOLDERS:
        for name, path in importlib.import_module(folder).COMPONENTS.get(kind, {}).items():
            assert name not in found, f"{kind} '{name}' is in two tables"
            found[name] = path
    offered: dict[str, str] = {}
    for entry in entry_points(group=f"mmrl.{kind}"):
        package = entry.dist.name if entry.dist is not None else "unknown"
        if entry.name in found:
            other = offered.get(entry.name)
            whose = "a built-in name" if other is None else f"that of package {other}"
            raise UserError(
                f"entry point {kind} '{entry.name}' = {entry.value} of package {package} hides {whose}; rename or uninstall one"
            )
        found[entry.name], offered[entry.name] = f"{entry.module}:{entry.attr or ''}", package
    return found


def names(kind: str) -> list[str]:
    """What a config may write for a kind, sorted. "function" wraps a user's plain function and is never written."""
    return sorted(name for name in table(kind) if name != "function")


def kinds() -> list[str]:
    """Every kind that some folder's table offers."""
    return sorted({kind for folder in FOLDERS for kind in importlib.import_module(folder).COMPONENTS})


def resolve(kind: str, name: str, base: Path | None = None) -> Any:
    """The class or function that `name` means; a relative file path is taken from `base` (the config's folder), then from
    the working directory. Raises UserError with the nearest names."""
    path = table(kind).get(name, name)
    if path.endswith(".py"):
        raise UserError(f"{kind} '{name}' is a file; say what in it is meant, as '{path}:Name'")
    if ":" not in path:
        known = names(kind)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise UserError(
            f"unknown {kind} '{name}'{hint} (built in: {', '.join(known)}; "
            "your own: 'package.module:Name' or 'path/to/file.py:Name')"
        )
    module_name, _, attribute = path.rpartition(":")
    module = _load_file(module_name, base) if module_name.endswith(".py") else _import(kind, name, module_name)
    if not attribute:
        raise UserError(
            f"{kind} '{name}' is the module {module_name}; say what in it is meant, as '{module_name}:Name'"
        )
    try:
        return functools.reduce(getattr, attribute.split("."), module)
    except AttributeError:
        near = difflib.get_close_matches(attribute, vars(module), n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise UserError(f"{kind} '{name}': {module_name} has no '{attribute}'{hint}") from None


def _import(kind: str, name: str, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"{kind} '{name}': cannot import {module_name}: {error}; is the package installed?") from None
    except (Exception, SystemExit) as error:
        raise UserError(f"{kind} '{name}': {module_name} {_raised(error)}") from error


def _load_file(file: str, base: Path | None) -> ModuleType:
    candidates = list(dict.fromkeys(folder / file for folder in (base, Path.cwd()) if folder is not None))
    path = next((candidate.resolve() for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise UserError(f"no file {file} (looked at {', '.join(str(candidate) for candidate in candidates)})")
    module_name = f"mmrl_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[module_name]
        if isinstance(error, Exception | SystemExit):
            raise UserError(f"{path} {_raised(error)}") from error
        raise
    return module


def _raised(error: Exception | SystemExit) -> str:
    if isinstance(error, SystemExit):
        return f"raised while it was loaded: called sys.exit({error.code!r})"
    if isinstance(error, PydanticUserError) and error.code == "model-field-missing-annotation":
        return f"cannot be loaded: {_untyped(error)}{line_of(error, __file__)}"
    return f"raised while it was loaded: {one_line(type(error).__name__, error)}"


def _untyped(error: PydanticUserError) -> str:
    """An attribute without a type that no base of its class has, and the nearest one, no method, that some base has."""
    said = re.search(r"`(\w+) = ", str(error))
    made = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "__new__"]
    if said is None or not made or not {"cls_name", "bases", "namespace"} <= made[-1].keys():
        return one_line(error)
    attribute, value = said[1], made[-1]["namespace"][said[1]]
    kinds = [kind for base in made[-1]["bases"] for kind in base.__mro__ if issubclass(kind, Component)]
    near = did_you_mean(attribute, sorted({one for kind in kinds for one in kind.__class_vars__}))
    return (
        f"class {made[-1]['cls_name']}: an option needs a type, as in {attribute}: {type(value).__name__} = {shown(value)}"
        f"{f'; or {near}' if near else ''}"
    )


def build(kind: str, spec: Mapping[str, Any], base: Path | None = None) -> Any:
    """`{name: ..., option: ...}` -> component. Raises UserError for an unknown name, pydantic.ValidationError for options."""
    options = {key: value for key, value in spec.items() if key != "name"}
    found = resolve(kind, str(spec["name"]), base)
    if isinstance(found, type) and issubclass(found, Component):
        lacking = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        if lacking:
            raise UserError(
                f"{kind} '{spec['name']}': class {found.__name__} lacks the method {lacking}, which every {kind} has"
            )
        return found.model_validate(options, context={"base": base})
    wrapper = table(kind).get("function")
    if wrapper is None or not callable(found):
        raise UserError(
            f"{kind} '{spec['name']}' is a {type(found).__name__}; expected a subclass of mmrl.components.Component"
        )
    return resolve(kind, wrapper).model_validate({"function": found, "options": options})
