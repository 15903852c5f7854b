"""What is wrong with the options of a section or component, in words and each thing at its own place."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from mmrl.errors import UserError

Loc = tuple[str | int, ...]

LONGEST = 100
"""Characters of a value that are shown."""


@dataclass(frozen=True)
class Complaint:
    """One thing that is wrong: the keys and indices that lead to it, and what was got and expected."""

    loc: Loc
    text: str


class Problems:
    """Gathers what is wrong inside a validator of a model, so that every option is told of and not only the first.

    `at(...)` turns a UserError or ValidationError into complaints there; `check` raises all of them as one ValidationError,
    whose places pydantic puts below that of the model.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.found: list[InitErrorDetails] = []

    @contextmanager
    def at(self, *loc: str | int, model: type[BaseModel] | None = None, value: Any = None) -> Iterator[None]:
        """`model` and `value`: what the ValidationError is about, for its nearest names and places."""
        try:
            yield
        except ValidationError as error:
            for complaint in complaints(error, model or BaseModel, value):
                self.add((*loc, *complaint.loc), complaint.text)
        except UserError as error:
            self.add(loc, str(error))

    def add(self, loc: Loc, text: str, known: Sequence[str] | None = None) -> None:
        """One complaint; `known`: the keys that may stand there, of one about a key that is not among them."""
        said: dict[str, Any] = {"text": text}
        if known is not None:
            said = {"text": _no_option(text, str(loc[-1]), known), "of": text, "known": list(known)}
        self.found.append({"type": PydanticCustomError("complaint", "{text}", said), "loc": loc, "input": None})

    def check(self) -> None:
        """Raises ValidationError if anything was found."""
        if self.found:
            raise ValidationError.from_exception_data(self.title, self.found)


def complaints(
    error: ValidationError, model: type[BaseModel], value: Any, beside: Iterable[str] = ()
) -> list[Complaint]:
    """What `error` says of `value` as `model`, misspelt keys first; keys `beside` its own may stand there too.

    A misspelt key is told once, not a second time as the missing key that it was meant to be; a value that fits none of
    several types is told once.
    """
    found: list[Complaint] = []
    meant: set[Loc] = set()
    unions: dict[Loc, list[str]] = {}
    for item in sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden"):
        kind, loc = item["type"], _in_value(item["loc"], value, item["type"])
        if kind == "extra_forbidden":
            known = sorted({*_fields_at(model, item["loc"][:-1]), *(beside if len(loc) == 1 else ())})
            meant |= {(*loc[:-1], name) for name in difflib.get_close_matches(str(loc[-1]), known, n=1)}
            found.append(Complaint(loc, unknown_key(str(loc[-1]), known)))
        elif kind == "missing" and loc in meant:
            continue
        elif kind == "complaint" and len(loc) == 1 and "known" in item["ctx"]:
            found.append(Complaint(loc, _no_option(item["ctx"]["of"], str(loc[0]), [*item["ctx"]["known"], *beside])))
        elif kind in ("union_tag_invalid", "union_tag_not_found"):
            key = str(item["ctx"]["discriminator"]).strip("'")
            known = sorted(_tags(model, item["loc"], key))
            found.append(Complaint((*loc, key), _tag(item["ctx"].get("tag"), known)))
        elif len(loc) < len(item["loc"]) and kind != "complaint":
            unions.setdefault(loc, []).append(_text(item))
        else:
            found.append(Complaint(loc, _text(item)))
    return [*found, *(Complaint(loc, _joined(texts)) for loc, texts in unions.items())]


def unknown_key(key: str, known: Sequence[str]) -> str:
    """The words for a key that is not among `known`."""
    return f"unknown key '{key}'; {did_you_mean(key, known) or f'known keys: {_list(known)}'}"


def _no_option(said: str, key: str, known: Sequence[str]) -> str:
    near = did_you_mean(key, known)
    return f"{said}{f'; {near}' if near else ''} (accepted: {_list(known)})"


def did_you_mean(got: object, known: Iterable[str]) -> str:
    """ "did you mean 'X'?" for the nearest of `known`, or nothing."""
    near = difflib.get_close_matches(str(got), list(known), n=1)
    return f"did you mean '{near[0]}'?" if near else ""


def shown(value: object) -> str:
    """A value for a message: its repr, cut when it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


EXPECTED = {
    "model_type": "a mapping, {key: value, ...} (a component is written {name: NAME, option: value, ...})",
    "model_attributes_type": "a mapping, {key: value, ...} (a component is written {name: NAME, option: value, ...})",
    "dict_type": "a mapping, {key: value, ...}",
    "tuple_type": "a list, [...]",
    "list_type": "a list, [...]",
    "too_short": "one entry or more",
}
"""Kinds of errors of pydantic, in the words of a config."""


def _text(item: Any) -> str:
    kind, text = item["type"], str(item["msg"])
    if kind == "complaint":
        return text
    if kind == "missing":
        return "is required and missing"
    if kind == "value_error":
        return text.removeprefix("Value error, ")
    expected = EXPECTED.get(kind)
    if expected is not None:
        return f"got {shown(item['input'])}; expected {expected}"
    if kind == "literal_error":
        near = did_you_mean(item["input"], re.findall(r"'([^']*)'", item["ctx"]["expected"]))
        text += f"; {near}" if near else ""
    return f"got {shown(item['input'])}; {text[0].lower()}{text[1:]}"


def _tag(got: object, known: Sequence[str]) -> str:
    if got is None:
        return f"is required and missing; expected one of {_list(known)}"
    near = did_you_mean(got, known)
    return f"got {shown(got)}; expected one of {_list(known)}{f'; {near}' if near else ''}"


def _joined(texts: Sequence[str]) -> str:
    """Several types that a value fits none of: "got 'x'; input should be A or input should be B"."""
    first, *others = texts
    return " or ".join([first, *(text.partition("; ")[2] or text for text in others)])


def _in_value(loc: Sequence[str | int], value: Any, kind: str) -> Loc:
    """`loc` without what only the types have: the tag of a discriminated union ("rl"), the member of a union ("int")."""
    kept: list[str | int] = []
    node = value
    for place, part in enumerate(loc):
        if isinstance(node, Mapping) and part in node:
            node = node[part]
        elif isinstance(node, list | tuple) and isinstance(part, int):
            node = node[part] if part < len(node) else None
        elif node is not None and not (place == len(loc) - 1 and kind in ("missing", "complaint")):
            continue
        kept.append(part)
    return tuple(kept)


def _fields_at(model: type[BaseModel], loc: Iterable[str | int]) -> set[str]:
    """Names of the fields of the model at `loc` below `model`."""
    return {name for candidate in _models(_at(model, loc)) for name in candidate.model_fields}


def _tags(model: type[BaseModel], loc: Iterable[str | int], key: str) -> set[str]:
    """What the discriminator `key` may be in the union at `loc` below `model`."""
    return {tag for one in _models(_at(model, loc)) for tag in get_args(one.model_fields[key].annotation)}


def _at(model: type[BaseModel], loc: Iterable[str | int]) -> Any:
    current: Any = model
    for part in loc:
        current = _step(current, part)
    return current


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
