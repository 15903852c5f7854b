"""A reward that is a plain function.

    def reward(samples: list[Sample], **options) -> list[float | None]

One number per sample, in order; None skips a sample that the reward does not apply to. In a config it is named
`package.module:function` or `path/to/file.py:function`, its options beside the name. Where a parameter has a type, the option is
checked and converted as a field of a class would be.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_type_hints

from pydantic import BeforeValidator, ConfigDict, Field, PrivateAttr, PydanticUserError, TypeAdapter, model_validator

from mmrl.components import resolve
from mmrl.options import Problems
from mmrl.reward import Reward
from mmrl.rollout import Sample


def _function(value: Any) -> Any:
    return resolve("reward", value) if isinstance(value, str) else value


class FunctionReward(Reward):
    """Calls `function(samples, **options)`. Raises a validation error for a function or options that do not fit."""

    licence = "that of the function"

    function: Annotated[Callable[..., Any], BeforeValidator(_function)]
    options: dict[str, Any] = Field(default_factory=dict)

    _typed: dict[str, Any] = PrivateAttr(default_factory=dict)
    """`options` as their types have them."""

    @model_validator(mode="after")
    def _can_be_called(self) -> FunctionReward:
        name = getattr(self.function, "__qualname__", repr(self.function))
        wanted = f"expected a plain function: def {name.split('.')[-1]}(samples, **options) -> list of numbers"
        if inspect.isclass(self.function):
            raise ValueError(f"{name} is a class; {wanted} (or a subclass of mmrl.reward.Reward)")
        if inspect.iscoroutinefunction(self.function) or inspect.isasyncgenfunction(self.function):
            raise ValueError(f"{name} is async; {wanted}")
        if inspect.isgeneratorfunction(self.function):
            raise ValueError(f"{name} yields its scores one by one; {wanted}")
        parameters = list(inspect.signature(self.function).parameters.values())
        if not parameters or parameters[0].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
            raise ValueError(f"{name} takes no samples; {wanted}")
        by_name = [p for p in parameters[1:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        accepted = [p.name for p in by_name]
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
        problems = Problems(name)
        for option in self.options:
            if option not in accepted and (not open_ended or option == parameters[0].name):
                problems.add((option,), f"{name} has no option '{option}'", accepted)
        for parameter in parameters[1:]:
            if parameter.default is not parameter.empty or parameter.name in self.options:
                continue
            if parameter.kind is parameter.POSITIONAL_ONLY:
                problems.add((), f"{name} takes '{parameter.name}' by its place alone; options are given by name")
            elif parameter in by_name:
                problems.add((parameter.name,), f"{name} needs the option '{parameter.name}', which has no default")
        problems.check()
        types = {parameter.name: parameter.annotation for parameter in by_name}
        defaults = {parameter.name: parameter.default for parameter in by_name}
        others = next((p.annotation for p in parameters if p.kind is p.VAR_KEYWORD), inspect.Parameter.empty)
        for option, value in self.options.items():
            kind = _type(self.function, types.get(option, others))
            with problems.at(option, value=value):
                implied = value is None and defaults.get(option, inspect.Parameter.empty) is None
                self._typed[option] = value if kind is None or implied else kind.validate_python(value)
        problems.check()
        return self

    def written_options(self) -> dict[str, Any]:
        """What stands beside the function's name in a config."""
        return dict(self.options)

    def score(self, samples: Sequence[Sample]) -> Sequence[float | None]:
        """What the function returns."""
        return self.function(list(samples), **self._typed)


def _type(function: Callable[..., Any], annotation: Any) -> TypeAdapter[Any] | None:
    """What checks values of an annotation, which may be a text; None without one, and for one that has a meaning to type checkers
    alone (a name that is not there at run time)."""
    if annotation is inspect.Parameter.empty:
        return None
    names = vars(sys.modules[inspect.unwrap(function).__module__])
    holder = type("Holder", (), {"__annotations__": {"it": annotation}})
    try:
        known = get_type_hints(holder, names, include_extras=True)["it"]
        return TypeAdapter(known, config=ConfigDict(arbitrary_types_allowed=True))
    except (NameError, TypeError, AttributeError, SyntaxError):
        return None
    except PydanticUserError:  # a model has a config of its own
        return TypeAdapter(known)
