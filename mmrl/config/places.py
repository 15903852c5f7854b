"""Where in a config components stand, and where the blocks that a policy's own types validate."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from mmrl.config.schema import Config, Spec
from mmrl.config.source import Path_

PLACES = {
    "policy": "policy",
    "examples": "examples",
    "prompts": "prompts",
    "advantage": "advantage",
    "shaping": "shaping",
    "selection": "selection",
    "select": "steps",
    "weight": "weight",
    "surrogate": "surrogate",
    "terms": "term",
    "correction": "correction",
    "rewards": "reward",
    "then": "transform",
}
"""Key of the schema -> kind of component that stands there."""

BLOCKS = {"rollout": "plan_type", "sampling": "sampling_type", "train": "train_type"}
"""Key of the schema -> the policy's type that validates the block standing there."""


@dataclass(frozen=True)
class Place:
    """A component or a block as it is written: the schema's `key` for it, its path and its mapping."""

    key: str
    path: Path_
    value: dict[str, Any]
    own: frozenset[str] = frozenset()
    """Keys beside a component's name that are not its options (the weight of a reward)."""

    def options(self) -> dict[str, Any]:
        """What a component is given."""
        return {key: value for key, value in self.value.items() if key not in self.own}


def places(tree: Any) -> list[Place]:
    """Every component with a name and every block of a config that need not be valid."""
    found = {place.path: place for place in _walk(Config, tree, "", ())}
    return list(found.values())


def _walk(annotation: Any, value: Any, key: str, path: Path_) -> Iterator[Place]:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType, Annotated):
        members = [arg for arg in args if _may_be(arg, value)]
        for arg in members or args:
            yield from _walk(arg, value, key, path)
    elif key in BLOCKS and origin is dict and isinstance(value, dict):
        yield Place(key, path, value)
    elif origin is dict and isinstance(value, dict):
        for name, inner in value.items():
            yield from _walk(args[1], inner, key, (*path, name))
    elif origin in (list, tuple) and isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _walk(args[0], inner, key, (*path, index))
    elif isinstance(annotation, type) and isinstance(value, dict):
        if issubclass(annotation, Spec):
            if isinstance(value.get("name"), str):
                yield Place(key, path, value, frozenset(annotation.model_fields))
            for name, field in annotation.model_fields.items():
                if name in value:
                    yield from _walk(field.annotation, value[name], name, (*path, name))
        elif issubclass(annotation, BaseModel):
            for name, field in annotation.model_fields.items():
                if name in value:
                    yield from _walk(field.annotation, value[name], name, (*path, name))


def _may_be(annotation: Any, value: Any) -> bool:
    """Whether a mapping is of the kind that a section says it has."""
    kind = getattr(annotation, "model_fields", {}).get("kind")
    return kind is not None and isinstance(value, dict) and value.get("kind") in get_args(kind.annotation)
