"""Names and options of a config -> components, every problem being gathered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from mmrl import components
from mmrl.config.schema import RewardSpec, Spec
from mmrl.config.source import Path_, Source
from mmrl.config.validate import lines, validate
from mmrl.errors import ConfigError, UserError
from mmrl.reward import Use


class Builder:
    """Builds components and gathers every problem, so that a user sees all of them at once."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.problems: list[str] = []

    def component(self, kind: str, spec: Spec, path: Path_) -> Any:
        return self.named(kind, spec.name, spec.options(), path, type(spec).model_fields)

    def named(self, kind: str, name: str, options: dict[str, Any], path: Path_, beside: Iterable[str] = ()) -> Any:
        """`beside`: keys that stand there too and are no options (the weight of a reward)."""
        try:
            return components.build(kind, {"name": name, **options}, self.source.folder)
        except ValidationError as error:
            found = components.resolve(kind, name, self.source.folder)
            model = found if isinstance(found, type) else BaseModel
            self.problems += lines(error, model, options, self.source, path, [key for key in beside if key != "name"])
        except UserError as error:
            self.problem((*path, "name"), str(error))
        return None

    def block(self, model: type[BaseModel] | None, value: Any, path: Path_) -> Any:
        if model is None:
            return None
        try:
            return validate(model, value, self.source, path)
        except ConfigError as error:
            self.problems.append(str(error))
            return None

    def rewards(self, specs: dict[str, RewardSpec], path: Path_) -> dict[str, Use]:
        """What a stage does with each reward; a part that could not be built is None in it."""
        return {name: self._use(spec, (*path, name)) for name, spec in specs.items()}

    def _use(self, spec: RewardSpec, path: Path_) -> Use:
        then = tuple(self.component("transform", one, (*path, "then", place)) for place, one in enumerate(spec.then))
        reward = self.component("reward", spec, path)
        return Use(reward, spec.weight, then, spec.where, spec.on_failure == "raise")

    def problem(self, path: Path_, text: str) -> None:
        self.problems.append(self.source.line(path, text))

    def check(self, path: Path_, action: Any, *args: Any) -> None:
        """Run a component's own check; its ValueError becomes a line at `path`."""
        try:
            action(*args)
        except ValueError as error:
            self.problem(path, str(error))

    def family(self, name: Any) -> Any:
        """The class of the policy, whose types validate the blocks also where its options are wrong; None without one."""
        try:
            return components.resolve("policy", str(name), self.source.folder)
        except UserError:
            return None
