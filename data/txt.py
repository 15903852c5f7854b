"""Prompts from a text file, one per line."""

from __future__ import annotations

from mmrl.data.files import DataPath, read_lines
from mmrl.data.source import PromptSource
from mmrl.errors import UserError
from mmrl.rollout import Prompt


class TxtPrompts(PromptSource):
    """One prompt per line of a UTF-8 file; a prompt's id is "FILE:LINE"."""

    path: DataPath
    skip_empty: bool = False
    """Leave empty lines out; otherwise one is an error, as it often hides a mistake."""

    def read(self) -> list[Prompt]:
        """All prompts. Raises UserError for a missing file, an empty file, an empty line or bytes that are no UTF-8."""
        prompts = []
        for number, line in read_lines(self.path):
            place = f"{self.path.name}:{number}"
            if line.strip():
                prompts.append(Prompt(id=place, text=line.strip(), meta={"source": place}))
            elif not self.skip_empty:
                raise UserError(f"{self.path.absolute()}:{number}: empty line; remove it or set skip_empty: true")
        if not prompts:
            raise UserError(f"{self.path.absolute()} holds no prompts; expected one per line")
        return prompts
