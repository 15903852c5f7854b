"""Prompts from a JSON-lines file."""

from __future__ import annotations

from mmrl.data.files import DataPath, read_json_lines
from mmrl.data.records import Columns, prompt_of
from mmrl.data.source import PromptSource
from mmrl.errors import UserError
from mmrl.rollout import Prompt


class JsonlPrompts(PromptSource):
    """One JSON object per line: `{"text": ..., "id": ..., "target": ..., "media": ..., "meta": {...}}`.

    All but the text may be absent. Without an id a prompt's id is "FILE:LINE".
    """

    path: DataPath
    columns: Columns = Columns()
    skip_empty: bool = False

    def read(self) -> list[Prompt]:
        """All prompts. Raises UserError with file and line for whatever cannot be a prompt."""
        prompts = []
        for number, record in read_json_lines(self.path, self.skip_empty):
            where = f"{self.path.absolute()}:{number}"
            prompts.append(
                prompt_of(record, self.columns, where, f"{self.path.name}:{number}", self.path.absolute().parent)
            )
        if not prompts:
            raise UserError(f"{self.path.absolute()} holds no prompts; expected one JSON object per line")
        return prompts
