"""What the pictures and videos of a prompt are to a policy, and whether they fit it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmrl.image import SUFFIXES
from mmrl.rollout import Prompt

LOOKS = "look"
"""The role of media in a policy that reads any number of pictures and videos."""
TAKES = {
    None: "draws from text alone",
    "first_frame": "starts from one picture, its first frame",
    "edit": "edits one or more pictures",
}
"""Role -> what a policy of this role does."""


def role_of(policy: Any) -> str | None:
    """A policy's `media_role`; without one it looks at whatever there is."""
    role: str | None = getattr(policy, "media_role", LOOKS)
    return role


def is_image(item: Any) -> bool:
    """Whether a medium (an array or a file's name) is a picture rather than a video."""
    return item.ndim == 3 if isinstance(item, np.ndarray) else Path(item).suffix.lower() in SUFFIXES


def check_fit(prompts: Sequence[Prompt], policy: Any, name: str) -> None:
    """Raises ValueError for the first prompt that the policy, called `name`, cannot take: for its media, or for what its own
    `check_prompt` says. Prompts that are made when they are looked at are left alone."""
    role, check = role_of(policy), getattr(policy, "check_prompt", None)
    if check is not None:
        for prompt in (prompt for prompt in prompts if type(prompt) is Prompt):
            check(prompt)
    if role == LOOKS:
        return
    for prompt in prompts:
        pictures = sum(is_image(item) for item in prompt.media)
        videos = len(prompt.media) - pictures
        fits = {None: pictures == 0, "first_frame": pictures == 1, "edit": pictures > 0}[role]
        if not fits or videos:
            mend = "remove the media" if role is None else "give it that" if not videos else "give it pictures only"
            raise ValueError(
                f"prompt '{prompt.id}' has {pictures} pictures and {videos} videos, but {name} {TAKES[role]}; {mend}, or use "
                "another policy"
            )
