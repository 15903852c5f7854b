"""Components inside the options of a puzzle source: built from their names, written out again with every default."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from mmrl import components
from mmrl.components import Component
from mmrl.data.puzzles.pictures import Pictures
from mmrl.data.puzzles.puzzle import PuzzleMaker
from mmrl.errors import UserError


def build(kind: str, base: type[Component], name: str, options: Mapping[str, Any], folder: Path | None) -> Any:
    """The component, or a UserError in one line that names the option (and its nearest valid name)."""
    found = components.resolve(kind, name, folder)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{kind} '{name}' is no subclass of {base.__module__}.{base.__name__}")
    try:
        return found.model_validate(dict(options), context={"base": folder})
    except ValidationError as error:
        raise UserError("; ".join(_line(kind, name, found, dict(item)) for item in error.errors())) from None


def _line(kind: str, name: str, found: type[Component], item: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, found.model_fields, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"options: {', '.join(found.model_fields) or 'none'}"
        return f"{kind} '{name}': unknown key '{key}'; {hint}"
    text = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "missing":
        text = "is required and missing"
    if item["type"] in ("missing", "value_error"):
        return f"{kind} '{name}': {key + ': ' if key else ''}{text}"
    return f"{kind} '{name}': {key}: got {item['input']!r}; {text[0].lower()}{text[1:]}"


class PicturesChoice(BaseModel):
    """`{name: folder, path: photos}`: where the pictures come from."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = "procedural"
    _built: Pictures = PrivateAttr()

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _build(self, info: ValidationInfo) -> PicturesChoice:
        base = (info.context or {}).get("base")
        self._built = build("pictures", Pictures, self.name, self.__pydantic_extra__ or {}, base)
        self.__dict__["name"] = absolute(self.name, base)
        object.__setattr__(self, "__pydantic_extra__", self._built.model_dump(mode="json"))
        return self

    @property
    def pictures(self) -> Pictures:
        """The source itself."""
        return self._built


class Entry(BaseModel):
    """One part of a mixture: `{kind: jigsaw, level: 2, weight: 1, size: 112}`; the options of the kind stand beside."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: str
    """A built-in puzzle, `package.module:Name` or `path/to/file.py:Name`."""
    level: int | tuple[int, ...] = 1
    """A level, or some of which each puzzle has one at random."""
    weight: PositiveFloat = Field(default=1.0, allow_inf_nan=False)
    _maker: PuzzleMaker = PrivateAttr()

    @model_validator(mode="after")
    def _build(self, info: ValidationInfo) -> Entry:
        base = (info.context or {}).get("base")
        self._maker = build("puzzle", PuzzleMaker, self.kind, self.__pydantic_extra__ or {}, base)
        if not self.levels:
            raise ValueError("level is an empty list; name at least one")
        for level in self.levels:
            self._maker.check_level(level)
        self.__dict__["kind"] = absolute(self.kind, base)
        object.__setattr__(self, "__pydantic_extra__", self._maker.model_dump(mode="json"))
        return self

    @property
    def maker(self) -> PuzzleMaker:
        """What makes the puzzles."""
        return self._maker

    @property
    def levels(self) -> tuple[int, ...]:
        """The levels, also where there is only one."""
        return (self.level,) if isinstance(self.level, int) else self.level


def absolute(name: str, base: Path | None) -> str:
    """A name with its file as an absolute path, so that it means the same from any folder."""
    file, _, attribute = name.rpartition(":")
    if not file.endswith(".py"):
        return name
    beside = None if base is None else Path(base) / file
    return f"{(beside if beside is not None and beside.is_file() else Path(file)).resolve()}:{attribute}"
