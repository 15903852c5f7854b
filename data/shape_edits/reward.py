"""The verifier of shape edits as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from mmrl.data.shape_edits.edits import Edit, read_target
from mmrl.data.shape_edits.verifier import judge
from mmrl.data.shapes.reward import WorldReward, found_in, picture, target_of
from mmrl.data.shapes.verifier import detect_strictly
from mmrl.data.shapes.world import Scene
from mmrl.rollout import Sample


class ShapeEditReward(WorldReward):
    """Judges an edited 24 x 24 picture against the edit and the scene in `prompt.target`.

    dense   half for the change, half for the rest that should have stayed, in [0, 1]
    exact   1 if the change has happened and nothing else has, else 0
    keep    the rest alone
    strict  exact with tight colours and a clean background; meant to be held out, never to be trained on
    """

    range = (0.0, 1.0)
    needs = ("image",)
    mode: Literal["dense", "exact", "keep", "strict"] = "dense"

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """One number per sample. Raises ValueError for a wrong picture, or a missing or foreign target."""
        images = np.stack([picture(sample) for sample in samples])
        targets = [_target(sample) for sample in samples]
        dirty = np.zeros(len(images), dtype=bool)
        if self.mode == "strict":
            found, dirty = detect_strictly(images)
        else:
            found = found_in(images.tobytes(), self.tolerance)
        verdicts = [judge(seen, *target) for seen, target in zip(found, targets, strict=True)]
        if self.mode == "dense":
            return [verdict.dense for verdict in verdicts]
        if self.mode == "keep":
            return [verdict.rest for verdict in verdicts]
        return [float(verdict.right and not lit) for verdict, lit in zip(verdicts, dirty, strict=True)]


def _target(sample: Sample) -> tuple[Edit, Scene]:
    return read_target(target_of(sample, "shape_edits", _fits))


def _fits(target: Any) -> bool:
    return bool(read_target(target))
