"""A reward that is a plain function.

    def reward(samples: list[Sample], **options) -> list[float | None]

One number per sample, in order; None skips a sample that the reward does not apply to. In a config it is named
`package.module:function` or `path/to/file.py:function`, its options beside the name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from mmrl.components import resolve
from mmrl.options import Problems, did_you_mean
from mmrl.reward import Reward
from mmrl.rollout import Sample


def _function(value: Any) -> Any:
    return resolve("reward", value) if isinstance(value, str) else value


class FunctionReward(Reward):
    """Calls `function(samples, **options)`. Raises a validation error for a function or options that do not fit."""

    licence = "that of the function"

    function: Annotated[Callable[..., Any], BeforeValidator(_function)]
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _can_be_called(self) -> FunctionReward:
        name = getattr(self.function, "__qualname__", repr(self.function))
        wanted = f"expected a plain function: def {name.split('.')[-1]}(samples, **options) -> list of numbers"
        if inspect.isclass(self.function):
            raise ValueError(f"{name} is a class; {wanted} (or a subclass of mmrl.reward.Reward)")
        if inspect.iscoroutinefunction(self.function):
            raise ValueError(f"{name} is async; {wanted}")
        parameters = list(inspect.signature(self.function).parameters.values())
        if not parameters or parameters[0].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
            raise ValueError(f"{name} takes no samples; {wanted}")
        by_name = [p for p in parameters[1:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        accepted = [p.name for p in by_name]
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
        problems = Problems(name)
        for option in self.options:
            if option not in accepted and (not open_ended or option == parameters[0].name):
                near = did_you_mean(option, accepted)
                hint = f"; {near}" if near else ""
                problems.add(
                    (option,), f"{name} has no option '{option}'{hint} (accepted: {', '.join(accepted) or 'none'})"
                )
        for parameter in by_name:
            if parameter.default is parameter.empty and parameter.name not in self.options:
                problems.add((parameter.name,), f"{name} needs the option '{parameter.name}', which has no default")
        problems.check()
        return self

    def written_options(self) -> dict[str, Any]:
        """What stands beside the function's name in a config."""
        return dict(self.options)

    def score(self, samples: Sequence[Sample]) -> Sequence[float | None]:
        """What the function returns."""
        return self.function(list(samples), **self.options)
