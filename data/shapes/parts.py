"""Parts of a world of captions: train and held-out captions have the same share of each kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmrl.data.split import Part, Split
from mmrl.errors import UserError
from mmrl.rollout import Prompt


def stratified(kinds: Sequence[Sequence[str]], seed: int, held_out: float) -> dict[str, list[str]]:
    """Captions of the "train" and "held_out" parts: disjoint, the same share of each kind, a function of the seed."""
    parts: dict[str, list[str]] = {"train": [], "held_out": []}
    rng = np.random.default_rng([seed, 0x5A9E5])
    for every in kinds:
        order = rng.permutation(len(every))
        cut = round(len(every) * held_out)
        parts["held_out"] += [every[i] for i in sorted(order[:cut])]
        parts["train"] += [every[i] for i in sorted(order[cut:])]
    return parts


def part_of(
    prompts: Sequence[Prompt], kinds: Sequence[Sequence[str]], parts: Split, part: Part | None, world: str
) -> list[Prompt]:
    """The prompts of a part (default: what `parts` says), whatever of the world's captions (by kind) they are.

    Validation captions are set aside from the train part. Raises UserError if the part is empty.
    """
    part = part or parts.part
    if part == "all":
        return list(prompts)
    held_out = set(stratified(kinds, parts.seed, parts.held_out)["held_out"])
    if part == "held_out":
        found = [prompt for prompt in prompts if prompt.text in held_out]
        if not found:
            raise UserError(f"the held_out part of the {world} is empty (split.held_out is {parts.held_out:g})")
        return found
    rest = [prompt for prompt in prompts if prompt.text not in held_out]
    inner = Split(held_out=parts.validation, seed=parts.seed)
    if part == "validation" and not parts.validation:
        raise UserError(f"the validation part of the {world} is empty (split.validation is 0); set split.validation")
    return [rest[position] for position in inner.choose(rest, "held_out" if part == "validation" else "train")]
