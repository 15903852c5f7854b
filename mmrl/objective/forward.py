"""How a surrogate sees finished samples that it does not judge by the steps they were drawn with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Levels = Literal["uniform", "logit_normal", "schedule"]
Weighting = Literal["uniform", "t", "t2", "huber", "ghuber"]


@dataclass(frozen=True)
class Forward:
    """Every finished sample is noised again at `times` levels t, which are then its steps: S = `times`.

    `levels`: uniform in [`t_min`, `t_max`], logit-normal and clamped to it, or levels of the rollout's own schedule without
    repetition; the k-th of the first two falls into the k-th of `times` equally likely parts. `shift` moves them to high noise
    as `s t / (1 + (s - 1) t)`. `shared`: all samples of a group have the same levels and one noise. The log-prob of a step is
    minus the error of the prediction, weighted by `weight`. `reference_guidance` is the guidance of the reference, by default
    that of the rollout. `whole_groups`: a chunk holds complete groups at one step.
    """

    times: int
    levels: Levels = "uniform"
    t_min: float = 0.001
    t_max: float = 1.0
    shift: float = 1.0
    shared: bool = False
    weight: Weighting = "uniform"
    reference_guidance: float | None = None
    whole_groups: bool = False
