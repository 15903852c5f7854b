"""A reward as a command names it: NAME and KEY=VALUE."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError

from mmrl.components import build, resolve
from mmrl.errors import UserError
from mmrl.options import complaints
from mmrl.reward.base import Reward, set_up


def named(name: str, options: Mapping[str, Any]) -> Reward:
    """The reward, loaded on the CPU; files are looked for in the working directory. Raises UserError in one line for a name or
    options that mean none, and for one that cannot be loaded."""
    try:
        reward = build("reward", {**options, "name": name}, Path.cwd())
    except ValidationError as error:
        kind = resolve("reward", name, Path.cwd())
        found = complaints(error, kind if isinstance(kind, type) else BaseModel, options)
        told = "; ".join(f"{'.'.join(map(str, one.loc))}: {one.text}".removeprefix(": ") for one in found)
        raise UserError(f"reward '{name}': {told}") from None
    if not isinstance(reward, Reward):
        raise UserError(f"reward '{name}' is a {type(reward).__name__}; expected a subclass of mmrl.reward.Reward")
    set_up(reward, f"reward '{name}'", torch.device("cpu"))
    return reward
