"""Components inside the options of a puzzle source: built from their names, written out again with every default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PositiveFloat,
    PrivateAttr,
    ValidationInfo,
    model_validator,
)
from typing_extensions import Self

from mmrl import components
from mmrl.components import Component
from mmrl.data.puzzles.pictures import Pictures
from mmrl.data.puzzles.puzzle import PuzzleMaker
from mmrl.errors import UserError
from mmrl.options import Problems


class Named(BaseModel):
    """A component by name (the field `key`), its options standing beside the fields of this model."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind_of: ClassVar[str]
    """The kind of component."""
    base: ClassVar[type[Component]]
    key: ClassVar[str] = "name"
    _built: Any = PrivateAttr()

    @model_validator(mode="wrap")
    @classmethod
    def _build(cls, value: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        """Everything that is wrong with the fields and the options is told at once, each at its own key."""
        if isinstance(value, cls):
            return value
        value = {cls.key: value} if isinstance(value, str) else value
        problems, base = Problems(cls.__name__), (info.context or {}).get("base")
        made = found = None
        with problems.at(model=cls, value=value):
            made = handler(value)
        name = value.get(cls.key, cls.model_fields[cls.key].default) if isinstance(value, Mapping) else None
        if isinstance(name, str):
            options = {key: option for key, option in value.items() if key not in cls.model_fields}
            with problems.at(cls.key):
                found = _resolve(cls.kind_of, cls.base, name, base)
                with problems.at(model=found, value=options):
                    built = found.model_validate(options, context={"base": base})
        if made is not None and found is not None:
            made._fit(found, problems)
        problems.check()
        assert made is not None
        made._built = built
        made.__dict__[cls.key] = absolute(getattr(made, cls.key), base)
        object.__setattr__(made, "__pydantic_extra__", built.model_dump(mode="json"))
        return made

    def _fit(self, found: Any, problems: Problems) -> None:
        """What the fields and the class of the component must fulfil together."""


def _resolve(kind: str, base: type[Component], name: str, folder: Path | None) -> type[Component]:
    found = components.resolve(kind, name, folder)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{kind} '{name}' is no subclass of {base.__module__}.{base.__name__}")
    return found


class PicturesChoice(Named):
    """`{name: folder, path: photos}`, or just the name: where the pictures come from."""

    kind_of, base = "pictures", Pictures

    name: str = "procedural"

    @property
    def pictures(self) -> Pictures:
        """The source itself."""
        return self._built


class Entry(Named):
    """One part of a mixture: `{kind: jigsaw, level: 2, weight: 1, size: 112}`; the options of the kind stand beside."""

    kind_of, base, key = "puzzle", PuzzleMaker, "kind"

    kind: str
    """A built-in puzzle, `package.module:Name` or `path/to/file.py:Name`."""
    level: int | tuple[int, ...] = 1
    """A level, or some of which each puzzle has one at random."""
    weight: PositiveFloat = Field(default=1.0, allow_inf_nan=False)

    def _fit(self, found: type[PuzzleMaker], problems: Problems) -> None:
        if not self.levels:
            problems.add(("level",), "is an empty list; name at least one")
        for level in self.levels:
            with problems.at("level"):
                found.check_level(level)

    @property
    def maker(self) -> PuzzleMaker:
        """What makes the puzzles."""
        return self._built

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
