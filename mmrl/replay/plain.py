"""Values of prompts and samples as JSON holds them, and back, without a change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """A value as JSON holds it, tuples and keys that are no text marked, so that `unplain` gives the same value again. Raises
    TypeError for what has no such form."""
    if value is None or isinstance(value, (str, bool)) or type(value) in (int, float):
        return value
    if isinstance(value, np.generic) and isinstance(value.item(), (bool, int, float, str)):
        return value.item()
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, tuple):
        return {"": "tuple", "of": [plain(one) for one in value]}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and key for key in value):
            return {key: plain(one) for key, one in value.items()}
        return {"": "mapping", "of": [[plain(key), plain(one)] for key, one in value.items()]}
    raise TypeError(f"it holds a {type(value).__name__}")


def unplain(value: Any) -> Any:
    """The inverse of `plain`."""
    if isinstance(value, list):
        return [unplain(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.get("") == "tuple":
        return tuple(unplain(one) for one in value["of"])
    if value.get("") == "mapping":
        return {unplain(key): unplain(one) for key, one in value["of"]}
    return {key: unplain(one) for key, one in value.items()}
