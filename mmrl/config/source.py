"""YAML files -> one plain tree of values that remembers where each value was written."""

from __future__ import annotations

import difflib
import importlib.resources
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.scalarbool import ScalarBoolean
from ruamel.yaml.scalarfloat import ScalarFloat
from ruamel.yaml.scalarint import ScalarInt

from mmrl.errors import ConfigError

Path_ = tuple[str | int, ...]

PLAIN_NAMES = ("run", "method")
"""Sections whose `name` is a label; everywhere else a changed name means another component with other options."""


@dataclass
class Source:
    """A merged config before validation: `tree` of plain values, `origin` of each key path ("file:line" or "command line"),
    the `name` of the config and the `folder` that relative paths in it are taken from."""

    tree: dict[str, Any]
    origin: dict[Path_, str] = field(default_factory=dict)
    name: str = "config"
    folder: Path = Path(".")

    def where(self, path: Path_) -> str:
        """The place of the longest known prefix of `path`."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origin:
                return self.origin[path[:length]]
        return self.name


def shipped() -> dict[str, Path]:
    """Name -> file of every config that ships with the package, e.g. `quickstart/generative`."""
    root = Path(str(importlib.resources.files("mmrl.configs")))
    return {str(file.relative_to(root).with_suffix("")): file for file in sorted(root.rglob("*.yaml"))}


def read(config: str, overrides: Sequence[str] = ()) -> Source:
    """Load a config by path or shipped name, follow `extends`, then apply `key=value` overrides. Raises ConfigError."""
    source = _read_file(_find(config, Path.cwd(), "command line"), ())
    for override in overrides:
        _apply(source, override)
    return source


def _find(config: str, folder: Path, where: str) -> Path:
    for path in (Path(config), folder / config):
        if path.is_file():
            return path.resolve()
    names = shipped()
    if config in names:
        return names[config]
    near = difflib.get_close_matches(config, names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise ConfigError(
        f"{where}: no config '{config}'{hint} (not a file here, and not one of the shipped names: {', '.join(names)})"
    )


def _read_file(path: Path, seen: tuple[Path, ...]) -> Source:
    if path in seen:
        raise ConfigError(f"{path}: 'extends' goes in a circle: {' -> '.join(str(p) for p in (*seen, path))}")
    try:
        document = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem or error.context}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a UTF-8 text file ({error.reason} at byte {error.start})") from None
    if not isinstance(document, CommentedMap):
        raise ConfigError(f"{path}: a config is a mapping of keys, got {type(document).__name__}")
    origin: dict[Path_, str] = {}
    tree = _plain(document, (), str(_short(path)), origin)
    own = Source(tree, origin, path.stem, path.parent)
    bases = tree.pop("extends", [])
    for base in reversed([bases] if isinstance(bases, str) else bases):
        parent = _read_file(_find(str(base), path.parent, own.where(("extends",))), (*seen, path))
        own = Source(_merge(parent, own, ()), parent.origin, own.name, own.folder)
    names = {file: name for name, file in shipped().items()}
    own.name = names.get(path, path.stem)
    return own


def _short(path: Path) -> Path:
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


def _plain(node: Any, path: Path_, file: str, origin: dict[Path_, str]) -> Any:
    if isinstance(node, CommentedMap):
        result = {}
        for key, value in node.items():
            if not isinstance(key, str):
                raise ConfigError(f"{file}:{node.lc.key(key)[0] + 1}: keys are text, got {key!r}")
            origin[(*path, key)] = f"{file}:{node.lc.key(key)[0] + 1}"
            result[key] = _plain(value, (*path, key), file, origin)
        return result
    if isinstance(node, CommentedSeq):
        for index in range(len(node)):
            origin[(*path, index)] = f"{file}:{node.lc.item(index)[0] + 1}"
        return [_plain(value, (*path, index), file, origin) for index, value in enumerate(node)]
    if isinstance(node, ScalarBoolean):
        return bool(node)
    if isinstance(node, ScalarFloat):
        return float(node)
    if isinstance(node, ScalarInt):
        return int(node)
    return str(node) if isinstance(node, str) else node


def _merge(base: Source, child: Source, path: Path_) -> Any:
    """Mappings merge key by key, everything else is replaced; a component whose name changes is replaced whole."""
    below, above = _at(base.tree, path), _at(child.tree, path)
    renamed = (
        isinstance(below, dict) and isinstance(above, dict) and "name" in above and above["name"] != below.get("name")
    )
    if not isinstance(below, dict) or not isinstance(above, dict) or (renamed and path and path[0] not in PLAIN_NAMES):
        _forget(base.origin, path)
        base.origin.update({key: value for key, value in child.origin.items() if key[: len(path)] == path})
        return above
    result = dict(below)
    for key, value in above.items():
        if value is None and isinstance(below.get(key), dict):
            del result[key]  # `stages: {warm: null}` removes what the base has
            _forget(base.origin, (*path, key))
        elif key in below:
            result[key] = _merge(base, child, (*path, key))
        else:
            result[key] = value
            prefix = (*path, key)
            base.origin.update({k: v for k, v in child.origin.items() if k[: len(prefix)] == prefix})
    return result


def _at(tree: Any, path: Path_) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _forget(origin: dict[Path_, str], path: Path_) -> None:
    for key in [key for key in origin if key[: len(path)] == path]:
        del origin[key]


def _apply(source: Source, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"command line: '{override}' is not key=value (for example stages.rl.optimizer.lr=1e-4)")
    origin: dict[Path_, str] = {}
    try:
        value = _plain(YAML(typ="rt").load(io.StringIO(text)), (), "command line", origin)
    except MarkedYAMLError as error:
        raise ConfigError(f"command line: {key}: cannot read the value {text!r}: {error.problem}") from None
    path = _path_in(source.tree, key)
    node: Any = source.tree
    for depth, part in enumerate(path[:-1]):
        node = node.setdefault(part, {}) if isinstance(node, dict) else node[part]
        if not isinstance(node, (dict, list)):
            raise ConfigError(
                f"command line: {key}: '{'.'.join(map(str, path[: depth + 1]))}' is {node!r}, not a section"
            )
    last = path[-1]
    if isinstance(node, dict) and isinstance(node.get(last), dict) and isinstance(value, str):
        raise ConfigError(
            f"command line: {key}: is a section (keys: {', '.join(node[last])}); set one of its keys, e.g. {key}.name={value}"
        )
    if (
        last == "name"
        and isinstance(node, dict)
        and node.get("name") not in (None, value)
        and path[0] not in PLAIN_NAMES
    ):
        node.clear()
        _forget(source.origin, path[:-1])
        source.origin[path[:-1]] = "command line"
    if isinstance(node, list) and isinstance(last, int):
        node[last] = value
    elif value is None and isinstance(node, dict) and isinstance(node.get(last), dict):
        del node[last]
    else:
        node[last] = value
    _forget(source.origin, path)
    source.origin |= dict.fromkeys([path, *((*path, *inner) for inner in origin)], "command line")


def _path_in(tree: Any, key: str) -> Path_:
    """Split `a.b.0.c`; a part is a list index where the tree has a list there."""
    path: list[str | int] = []
    node: Any = tree
    for part in key.split("."):
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise ConfigError(f"command line: {key}: '{part}' is not an index of the {len(node)} entries there")
            path.append(int(part))
            node = node[int(part)]
        else:
            path.append(part)
            node = node.get(part) if isinstance(node, dict) else None
    return tuple(path)
