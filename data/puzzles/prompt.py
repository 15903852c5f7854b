"""A prompt that is drawn when it is looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmrl.rollout import Prompt


class LazyPrompt(Prompt):
    """A prompt of which only the id is known at first; `draw` makes the rest, always the same.

    Text, target and meta stay once they are made; pictures and videos are made again when they are asked for (`draw`
    remembers the latest ones), so that a hundred thousand prompts take no more memory than their ids.
    """

    def __new__(cls, *args: Any, **fields: Any) -> Any:
        """`dataclasses.replace` builds from fields, not from `draw`, and gets a plain prompt."""
        return super().__new__(cls) if "draw" in fields else Prompt(*args, **fields)

    def __init__(self, id: str, *, draw: Callable[[], Prompt]) -> None:
        self.__dict__.update(id=id, _draw=draw, _light=None)

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, Any]]:
        return (self.id,), {"draw": self.__dict__["_draw"]}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LazyPrompt) and (self.id, self.text, self.target) == (
            other.id,
            other.text,
            other.target,
        )

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def text(self) -> str:
        return self._known().text

    @property
    def target(self) -> Any:
        return self._known().target

    @property
    def meta(self) -> Mapping[str, Any]:
        return self._known().meta

    @property
    def media(self) -> tuple[Any, ...]:
        return self._drawn().media

    def _known(self) -> Prompt:
        return self.__dict__["_light"] or self._drawn()

    def _drawn(self) -> Prompt:
        full: Prompt = self.__dict__["_draw"]()
        if self.__dict__["_light"] is None:
            self.__dict__["_light"] = Prompt(full.id, full.text, (), full.target, full.meta)
        return full
