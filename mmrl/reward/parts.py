"""Named parts of a score, such as the axes of a reward model.

A reward may leave them in `sample.meta["components"]`, a dictionary of finite floats, when it gives a number; once it has scored, they are
found under its name in the run: `sample.meta["components"][NAME]`. They change no score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl.reward.scored import number_of
from mmrl.rollout import Sample

KEY = "components"


def take_parts(samples: Sequence[Sample]) -> dict[int, Any]:
    """Take the entry out of every sample; by `id(sample)`, None where there is none."""
    found: dict[int, Any] = {}
    for sample in samples:
        entry = sample.meta.pop(KEY, None)
        found.setdefault(id(sample), entry)  # a sample may be asked about twice
    return found


def restore_parts(samples: Sequence[Sample], entries: Mapping[int, Any]) -> None:
    """The inverse of `take_parts`."""
    for sample in samples:
        if entries[id(sample)] is not None:
            sample.meta[KEY] = entries[id(sample)]


def file_parts(sample: Sample, name: str, left: Any) -> str | None:
    """Put what a reward `left` on a sample under its name; what of an earlier scoring stands there goes. Returns what is wrong with it
    where it is not a dictionary of finite floats, and None otherwise."""
    if isinstance(sample.meta.get(KEY), Mapping) and name in sample.meta[KEY]:
        sample.meta[KEY] = {key: value for key, value in sample.meta[KEY].items() if key != name}
    if left is None:
        return None
    wrong = f"in meta['{KEY}'] "
    if not isinstance(left, Mapping):
        return f"{wrong}a {type(left).__name__}; expected a dictionary of finite numbers"
    for key, value in left.items():
        number = None if isinstance(value, bool) else number_of(value)
        if not isinstance(key, str) or number is None or not math.isfinite(number):
            return f"{wrong}{ascii(key)[:60]}: {ascii(value)[:60]}; expected a dictionary of finite numbers"
    others = sample.meta.get(KEY, {})
    sample.meta[KEY] = {**others, name: {key: float(value) for key, value in left.items()}}
    return None
