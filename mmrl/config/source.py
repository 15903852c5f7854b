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
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.scalarbool import ScalarBoolean
from ruamel.yaml.scalarfloat import ScalarFloat
from ruamel.yaml.scalarint import ScalarInt

from mmrl.errors import ConfigError

Path_ = tuple[str | int, ...]

COMMAND_LINE = "command line"
MOST_PLACES = 3
"""Places of values inside a section that a message names."""
LONGEST = 120
"""Characters of KEY=VALUE that a message shows."""

PLAIN_NAMES = ("run", "method")
"""Sections whose `name` and `kind` are labels; everywhere else another one means other options."""


@dataclass
class Source:
    """A merged config before validation: `tree` of plain values, `origin` of each key path ("file:line" or "command line:
    KEY=VALUE"), the `name` of the config, its `file`, and the `folder` that relative paths in it are taken from."""

    tree: dict[str, Any]
    origin: dict[Path_, str] = field(default_factory=dict)
    name: str = "config"
    file: str = "config"
    folder: Path = Path(".")

    def where(self, path: Path_) -> str:
        """The place of the longest known prefix of `path`."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origin:
                return self.origin[path[:length]]
        return self.file

    def line(self, path: Path_, text: str) -> str:
        """`file:line: key: text`, or `command line: key=value: text`. A section names also where values in it come
        from elsewhere (the first of another file, those of the command line), since one of them may be what is wrong."""
        where, key = self.where(path), _dotted(path)
        if where.startswith(f"{COMMAND_LINE}: {key}="):
            return f"{where}: {text}"
        others: dict[str, str] = {}
        for inner, place in self.origin.items():
            if len(inner) > len(path) and inner[: len(path)] == path and _file(place) != _file(where):
                others.setdefault(_file(place), place)
        beside = ", ".join(list(others.values())[:MOST_PLACES] if path else ())
        return f"{where}{f' (and {beside})' if beside else ''}: {key + ': ' if key else ''}{text}"


def shipped() -> dict[str, Path]:
    """Name -> file of every config that ships with the package, e.g. `quickstart/generative`."""
    root = Path(str(importlib.resources.files("mmrl.configs")))
    return {str(file.relative_to(root).with_suffix("")): file for file in sorted(root.rglob("*.yaml"))}


def read(config: str, overrides: Sequence[str] = ()) -> Source:
    """Load a config by path or shipped name, follow `extends`, then apply `key=value` overrides. Raises ConfigError."""
    source = _read_file(_find(config, Path.cwd(), COMMAND_LINE), ())
    problems = []
    for override in overrides:
        try:
            _apply(source, override)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return source


def values_of(assignments: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` texts as values, each read as YAML. Raises ConfigError for a text that is none."""
    source = Source({})
    for one in assignments:
        _apply(source, one)
    return source.tree


def _dotted(path: Path_) -> str:
    return ".".join(map(str, path))


def _file(place: str) -> str:
    """`base.yaml:3` -> `base.yaml`; every value of the command line is a place of its own."""
    return place if place.startswith(COMMAND_LINE) else place.rpartition(":")[0]


def _find(config: str, folder: Path, where: str) -> Path:
    for path in (Path(config), folder / config):
        if path.is_file():
            return path.resolve()
    names = shipped()
    if config in names:
        return names[config]
    beside = [path.name for path in sorted(folder.glob("*.y*ml"))]
    near = difflib.get_close_matches(config, [*beside, *names], n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise ConfigError(
        f"{where}: no config '{config}'{hint} (not a file here, and not one of the {len(names)} shipped names, which "
        "`mmrl list configs` and `mmrl list methods` show)"
    )


def _read_file(path: Path, seen: tuple[Path, ...]) -> Source:
    if path in seen:
        raise ConfigError(f"{path}: 'extends' goes in a circle: {' -> '.join(str(p) for p in (*seen, path))}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a UTF-8 text file ({error.reason} at byte {error.start})") from None
    try:
        document = YAML(typ="rt").load(text)
    except (YAMLError, ValueError) as error:
        line, problem = _problem(error, text)
        raise ConfigError(f"{path}{f':{line}' if line else ''}: not valid YAML: {problem}") from None
    if not isinstance(document, CommentedMap):
        raise ConfigError(f"{path}: a config is a mapping of keys, got {type(document).__name__}")
    origin: dict[Path_, str] = {}
    tree = _plain(document, (), str(_short(path)), origin)
    own = Source(tree, origin, path.stem, str(_short(path)), path.parent)
    written = tree.pop("extends", [])
    bases = [written] if isinstance(written, str) else written
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(
            f"{own.where(('extends',))}: extends: got {written!r}; expected a config or a list of configs"
        )
    for base in reversed(bases):
        parent = _read_file(_find(base, path.parent, own.where(("extends",))), (*seen, path))
        own = Source(_merge(parent, own, ()), parent.origin, own.name, own.file, own.folder)
    names = {file: name for name, file in shipped().items()}
    own.name = names.get(path, path.stem)
    return own


def _short(path: Path) -> Path:
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


def _problem(error: YAMLError | ValueError, text: str) -> tuple[int | None, str]:
    """Line (from 1, where known) and cause of what the YAML reader raised; a ValueError is a scalar that its tag or form
    promises to be a number or a date."""
    if isinstance(error, ReaderError):
        return text.count("\n", 0, error.position) + 1, f"unprintable character {error.character!r}"
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        return (mark.line + 1 if mark is not None else None), str(error.problem or error.context)
    return None, str(error)


def _line(node: CommentedMap, key: Any) -> int:
    """Line of a key; what came by a merge (`<<: *base`) has none here and takes that of the mapping."""
    place = (node.lc.data or {}).get(key)
    return int(node.lc.line if place is None else place[0]) + 1


def _plain(node: Any, path: Path_, file: str, origin: dict[Path_, str]) -> Any:
    if isinstance(node, CommentedMap):
        result = {}
        for key, value in node.items():
            if not isinstance(key, str):
                raise ConfigError(f"{file}:{_line(node, key)}: keys are text, got {key!r}")
            origin[(*path, key)] = f"{file}:{_line(node, key)}"
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
    """Mappings merge key by key, everything else is replaced; what becomes another component is replaced whole."""
    below, above = _at(base.tree, path), _at(child.tree, path)
    if not isinstance(below, dict) or not isinstance(above, dict):
        _forget(base.origin, path)
        base.origin.update({key: value for key, value in child.origin.items() if key[: len(path)] == path})
        return above
    label = _identity(below, path)
    if label is not None and above.get(label, below[label]) != below[label]:
        below = _drop_options(base, below, path)
        base.origin[path] = child.where(path)
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


def _identity(node: dict[str, Any], path: Path_) -> str | None:
    """The key that says what the mapping at `path` is, so that its other keys mean nothing under another value: `name` of a
    component, else `kind` of a sampler or a stage; None where there is no such key."""
    if not path or path[0] in PLAIN_NAMES:
        return None
    return next((key for key in ("name", "kind") if isinstance(node.get(key), str)), None)


def _drop_options(source: Source, node: dict[str, Any], path: Path_) -> dict[str, Any]:
    """What stays of the mapping at `path` when it becomes another component: the weight of a reward."""
    kept = {key: value for key, value in node.items() if key == "weight" and path[-2:-1] == ("rewards",)}
    origins = {(*path, key): source.where((*path, key)) for key in kept}
    _forget(source.origin, path)
    source.origin |= origins
    return kept


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
        raise ConfigError(f"{COMMAND_LINE}: '{override}' is not key=value (for example stages.rl.optimizer.lr=1e-4)")
    place = f"{COMMAND_LINE}: {override if len(override) <= LONGEST else f'{override[: LONGEST - 3]}...'}"
    origin: dict[Path_, str] = {}
    try:
        value = _plain(YAML(typ="rt").load(io.StringIO(text)), (), COMMAND_LINE, origin)
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"{place}: cannot read the value {text!r}: {_problem(error, text)[1]}") from None
    path = _path_in(source.tree, key, place)
    node: Any = source.tree
    for depth, part in enumerate(path[:-1], start=1):
        if isinstance(node, dict) and part not in node:
            node[part] = {}
            source.origin[path[:depth]] = place
        node = node[part]
        if not isinstance(node, (dict, list)):
            raise ConfigError(f"{place}: '{_dotted(path[:depth])}' is {node!r}, not a section")
    last = path[-1]
    if isinstance(node, dict) and isinstance(node.get(last), dict) and isinstance(value, str):
        raise ConfigError(
            f"{place}: is a section (keys: {', '.join(node[last])}); set one of its keys, e.g. {key}.name={value}"
        )
    if isinstance(node, dict) and last == _identity(node, path[:-1]) and node[last] != value:
        kept = _drop_options(source, node, path[:-1])
        node.clear()
        node |= kept
        source.origin[path[:-1]] = place
    if value is None and isinstance(node, dict) and isinstance(node.get(last), dict):
        del node[last]
    else:
        node[last] = value
    _forget(source.origin, path)
    source.origin |= dict.fromkeys([path, *((*path, *inner) for inner in origin)], place)


def _path_in(tree: Any, key: str, place: str) -> Path_:
    """Split `a.b.0.c`; a part is a list index where the tree has a list there."""
    path: list[str | int] = []
    node: Any = tree
    for part in key.split("."):
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise ConfigError(f"{place}: '{part}' is not an index of the {len(node)} entries there")
            path.append(int(part))
            node = node[int(part)]
        else:
            path.append(part)
            node = node.get(part) if isinstance(node, dict) else None
    return tuple(path)
