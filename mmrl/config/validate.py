"""Validation errors of pydantic -> lines with file, line, key, the value that was got and the nearest valid key."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from mmrl.config.source import Path_, Source
from mmrl.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], value: Any, source: Source, path: Path_ = ()) -> Model:
    """`model.model_validate(value)`; raises ConfigError with one line per problem, `path` being where `value` stands."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise ConfigError("\n".join(lines(error, model, source, path))) from None


def lines(error: ValidationError, model: type[BaseModel], source: Source, path: Path_ = ()) -> list[str]:
    """One line per problem: `file:line: key: what was got; what was expected`.

    A misspelt key is told once, not a second time as the missing key that it was meant to be.
    """
    found: list[str] = []
    meant: set[tuple[str | int, ...]] = set()
    for item in sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden"):
        loc = tuple(_without_tags(item["loc"], source.tree, path))
        key = ".".join(str(part) for part in (*path, *loc))
        if item["type"] == "extra_forbidden":
            known = sorted(_fields_at(model, item["loc"][:-1]))
            near = difflib.get_close_matches(str(loc[-1]), known, n=1)
            meant |= {(*loc[:-1], name) for name in near}
            hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
            text = f"unknown key '{loc[-1]}'; {hint}"
        elif item["type"] == "missing" and loc in meant:
            continue
        elif item["type"] == "missing":
            text = "is required and missing"
        elif item["type"] == "value_error":
            text = str(item["msg"]).removeprefix("Value error, ")
        else:
            text = f"got {item['input']!r}; {item['msg'][0].lower()}{item['msg'][1:]}"
        found.append(f"{source.where((*path, *loc))}: {key}: {text}")
    return found


def _without_tags(loc: Iterable[str | int], tree: Any, path: Path_) -> list[str | int]:
    """pydantic puts the tag of a discriminated union ("rl") into the location; drop what the tree does not have."""
    node: Any = tree
    for part in path:
        node = node[part] if isinstance(node, (dict, list)) else None  # type: ignore[index]
    kept: list[str | int] = []
    parts = list(loc)
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if isinstance(node, dict) and part not in node and not last and node.get("kind") == part:
            continue
        kept.append(part)
        if isinstance(node, dict):
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
            node = None
    return kept


def _fields_at(model: type[BaseModel], loc: Iterable[str | int]) -> set[str]:
    """Names of the fields of the model at `loc` below `model`."""
    current: Any = model
    for part in loc:
        current = _step(current, part)
    return {name for candidate in _models(current) for name in candidate.model_fields}


def _step(annotation: Any, part: str | int) -> Any:
    for candidate in _models(annotation):
        if part in candidate.model_fields:
            return candidate.model_fields[str(part)].annotation
        kind = candidate.model_fields.get("kind")
        if kind is not None and part in get_args(kind.annotation):
            return candidate
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (dict, list, tuple) and args:
        return args[1] if origin is dict else args[0]
    if origin in (Union, types.UnionType, Annotated):
        for arg in args:
            found = _step(arg, part)
            if found is not None:
                return found
    return None


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return [model for arg in get_args(annotation) for model in _models(arg)]
    return []
