"""Validation errors -> lines with file, line, key, the value that was got and the nearest valid key."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mmrl.config.source import Path_, Source
from mmrl.errors import ConfigError
from mmrl.options import complaints

Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], value: Any, source: Source, path: Path_ = ()) -> Model:
    """`model.model_validate(value)`; raises ConfigError with one line per problem, `path` being where `value` stands."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise ConfigError("\n".join(lines(error, model, value, source, path))) from None


def lines(
    error: ValidationError,
    model: type[BaseModel],
    value: Any,
    source: Source,
    path: Path_ = (),
    beside: Iterable[str] = (),
) -> list[str]:
    """One line per problem: `file:line: key: what was got; what was expected`. `beside`: keys of `path` that are not in `value`."""
    return [source.line((*path, *found.loc), found.text) for found in complaints(error, model, value, beside)]
