"""Prompts written into the config."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from mmrl.data.records import Columns, prompt_of
from mmrl.data.source import PromptSource
from mmrl.rollout import Prompt


class ListPrompts(PromptSource):
    """`items`: texts, or mappings with text, id, target, media and meta. The default id is "list:NUMBER" (from 1)."""

    items: tuple[str | dict[str, Any], ...] = Field(min_length=1)

    def read(self) -> list[Prompt]:
        """All prompts. Raises UserError for an item that cannot be a prompt."""
        return [
            prompt_of({"text": item} if isinstance(item, str) else item, Columns(), place, place, None)
            for place, item in ((f"list:{number}", item) for number, item in enumerate(self.items, start=1))
        ]
