"""Train, validation and held-out parts of a prompt set, split by prompt and never by row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mmrl.errors import UserError
from mmrl.rollout import Prompt
from mmrl.seeding import derive_seed

Part = Literal["all", "train", "validation", "held_out"]


class Split(BaseModel):
    """Which part of a source is used, and how large the parts are.

    Rows with equal keys always fall into one part. The parts depend on the seed and the set of keys, not on the
    order of the rows; use the same numbers wherever parts of one source must be disjoint.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    part: Part = "all"
    held_out: float = Field(default=0.2, ge=0, lt=1)
    """Share of the distinct keys that is held out (at least one if it is not 0)."""
    validation: float = Field(default=0.0, ge=0, lt=1)
    """Share of the distinct keys set aside for validation."""
    seed: int = 0
    by: Literal["prompt", "text", "media"] = "prompt"
    """The key: text and media together, or one of them. Texts are compared without case and extra blanks."""

    @model_validator(mode="after")
    def _leaves_something(self) -> Split:
        if self.held_out + self.validation >= 1:
            raise ValueError(f"held_out {self.held_out} + validation {self.validation} leave nothing to train on")
        return self

    def choose(self, prompts: Sequence[Prompt], part: Part | None = None) -> list[int]:
        """Positions of the prompts of `part` (default: the split's own), in order. Raises UserError if it is empty."""
        part = part or self.part
        if part == "all":
            return list(range(len(prompts)))
        keys = [self._key(prompt) for prompt in prompts]
        ranked = sorted(set(keys), key=lambda key: (derive_seed("split", self.seed, key), key))
        held, validation = (
            max(1, round(share * len(ranked))) if share else 0 for share in (self.held_out, self.validation)
        )
        first, last = {
            "held_out": (0, held),
            "validation": (held, held + validation),
            "train": (held + validation, len(ranked)),
        }[part]
        inside = set(ranked[first:last])
        found = [position for position, key in enumerate(keys) if key in inside]
        if not found:
            size = "" if part == "train" else f" (split.{part} is {getattr(self, part):g})"
            raise UserError(
                f"the {part} part of {len(prompts)} prompts ({len(ranked)} distinct) is empty{size}; "
                "change the shares held_out and validation or add prompts"
            )
        return found

    def _key(self, prompt: Prompt) -> str:
        text = "" if self.by == "media" else " ".join(prompt.text.casefold().split())
        media = "" if self.by == "text" else " ".join(_identity(item) for item in prompt.media)
        return f"{text}\n{media}"


def _named(value: Any) -> Any:
    return {"part": value} if isinstance(value, str) else value


def _identity(media: Any) -> str:
    if isinstance(media, np.ndarray):
        return hashlib.blake2b(media.tobytes() + str(media.shape).encode(), digest_size=16).hexdigest()
    return str(media)


SplitOption = Annotated[Split, BeforeValidator(_named, json_schema_input_type=Split | Part)]
"""A `Split` in a config: the mapping, or just the name of a part."""
