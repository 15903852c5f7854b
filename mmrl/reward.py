"""Rewards: what an author writes, how a set of them scores samples, and how many failures a run bears.

A score is a number, None (*skipped*: the reward does not apply) or a failure (an exception, NaN, what is no number). A
failure never turns into a number: the sample is left out of its group's statistics and of the loss.

Shapes: N samples, K rewards.
"""

from __future__ import annotations

import math
import sysconfig
import traceback
from abc import abstractmethod
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from mmrl.components import Component
from mmrl.errors import UserError
from mmrl.rollout import FAILED, OK, SKIPPED, STATUS_NAMES, Sample, Scores

Scope = Literal["pointwise", "groupwise", "pairwise"]
Need = Literal["text", "image", "video", "target"]


class Graded(float):
    """A score that says in one word how it came about: the rule that read an answer, "unparsed", "truncated" ...

    The word does not change the score. `RewardSet.score` leaves it in `Sample.meta["graded"][name of the reward]`.
    """

    how: str

    def __new__(cls, value: float, how: str) -> Graded:
        self = super().__new__(cls, value)
        self.how = how
        return self


class Failed:
    """In the place of a score: this sample failed, for `reason` (the others of the batch may be fine)."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class Reward(Component):
    """Base of every reward. Fields are its options in a config; the class attributes describe it.

    What `setup` loads belongs in pydantic private attributes (`_model: Any = PrivateAttr(None)`), which stay writable.
    """

    range: ClassVar[tuple[float | None, float | None]] = (None, None)
    """Smallest and largest possible score; None is unbounded. A score outside is a failure."""
    higher_is_better: ClassVar[bool] = True
    scope: ClassVar[Scope] = "pointwise"
    """What one score depends on: a sample, its whole group (`score` then sees one group at a time, whole), or pairs of it (see
    `PairwiseReward` in `mmrl.pairwise`, which is given whole groups as well)."""
    needs: ClassVar[tuple[Need, ...]] = ()
    """A sample that lacks one of these is skipped and never reaches `score`."""
    deterministic: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False
    """It has `score_tensor`."""
    revision: ClassVar[str] = "1"
    licence: ClassVar[str] = "unknown"

    def limits(self) -> tuple[float | None, float | None]:
        """`range`, or a narrower one that follows from the options."""
        return self.range

    def inputs(self) -> tuple[Need, ...]:
        """What a run must offer for this reward to make sense: `needs`, or more that follows from the options."""
        return self.needs

    def setup(self, device: torch.device) -> None:
        """Load weights and the like, once, before the first `score`."""
        return None

    def score_tensor(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Scores `(B,)` with gradient of pictures `(B, 3, H, W)` float32 in [0, 1]; rewards that are `differentiable` have it."""
        raise NotImplementedError(f"{type(self).__name__} has no gradient")

    @abstractmethod
    def score(self, samples: Sequence[Sample]) -> Sequence[float | Failed | None]:
        """One number per sample, in order; None skips a sample, `Failed` says why it has none. Whatever is raised makes the
        samples failed: they are then scored one by one, to find those that fail."""


def rgb(image: Any) -> np.ndarray:
    """`image` if it is what a sample holds, a uint8 array (H, W, 3). Raises ValueError that says what it is instead."""
    if (
        isinstance(image, np.ndarray)
        and image.dtype == np.uint8
        and image.ndim == 3
        and image.shape[2] == 3
        and image.size
    ):
        return image
    got = f"{image.dtype} array {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise ValueError(f"expected a uint8 RGB image (H, W, 3), got {got}")


class RewardSet:
    """Scores samples with every reward and combines the scores.

    `rewards` maps a name to (reward, weight). Those named in `held_out` are scored and logged, never
    trained on. Raises UserError for a reward that cannot be scored here.
    """

    def __init__(self, rewards: Mapping[str, tuple[Reward, float]], held_out: Collection[str] = ()) -> None:
        self.names = tuple(rewards)
        self.rewards = tuple(reward for reward, _ in rewards.values())
        self.weights = tuple(0.0 if name in held_out else float(weight) for name, (_, weight) in rewards.items())
        for name, weight in zip(self.names, self.weights, strict=True):
            if not math.isfinite(weight):
                raise UserError(f"reward '{name}' has weight {weight}; expected a finite number")
        for name in held_out:
            if name not in rewards:
                raise UserError(f"held-out reward '{name}' is not one of {', '.join(self.names)}")

    def check_trained(self) -> None:
        """Raises UserError if nothing is trained on, or a weight would teach the opposite of what its reward means."""
        if not any(self.weights):
            raise UserError("no reward is trained on: every reward is held out or has weight 0")
        for name, reward, weight in zip(self.names, self.rewards, self.weights, strict=True):
            if weight > 0 and not reward.higher_is_better:
                raise UserError(
                    f"lower is better for reward '{name}', so its weight {weight:g} would teach the opposite; "
                    f"set the weight to {-weight:g} or hold the reward out"
                )

    def setup(self, device: torch.device) -> None:
        """Let every reward load what it needs."""
        for reward in self.rewards:
            reward.setup(device)

    @property
    def reads_groups(self) -> bool:
        """Some reward compares the samples of a group, so that a process must hold whole groups."""
        return any(reward.scope != "pointwise" for reward in self.rewards)

    def score(self, samples: Sequence[Sample], group: Sequence[int] | None = None) -> Scores:
        """Every reward on every sample; what a reward raises becomes a failure (not KeyboardInterrupt, SystemExit).

        `group (N,)` says which samples are compared with each other. Raises UserError where a reward needs it and it is missing.
        """
        if self.reads_groups and group is None:
            raise UserError("a reward compares the samples of a group, and nothing says what the groups are")
        values = np.full((len(samples), len(self.rewards)), np.nan)
        status = np.full(values.shape, SKIPPED, dtype=np.int64)
        messages: list[str] = []
        where = _places(samples)
        for column, (name, reward) in enumerate(zip(self.names, self.rewards, strict=True)):
            rows = [row for row, sample in enumerate(samples) if not lacking(reward, sample)]
            for row, outcome in _outcomes(name, reward, samples, rows, where, group):
                if isinstance(outcome, str):
                    status[row, column] = FAILED
                    messages.append(outcome)
                elif outcome is not None:
                    status[row, column], values[row, column] = OK, outcome
                    if isinstance(outcome, Graded):
                        samples[row].meta.setdefault("graded", {})[name] = outcome.how
        return Scores(self.names, values, status, messages)

    def total(self, scores: Scores, group: Any) -> np.ndarray:
        """The reward `(N,)` float64 that is trained on: the weighted sum of the trained rewards, or NaN.

        `group (N,)` integers; all samples of a group must be there (gather first if ranks share a group). A sample is NaN if a
        trained reward failed on it, or skipped it but not its whole group. A reward that skipped a whole group is left out
        of that group's sums; a group without any reward is NaN, never 0.
        """
        self.check_trained()
        _, inverse = np.unique(np.asarray(group), return_inverse=True)
        total = np.zeros(len(scores.values))
        counted = np.zeros(len(total), dtype=bool)
        for column, weight in enumerate(self.weights):
            if weight == 0:
                continue
            skipped = scores.status[:, column] == SKIPPED
            applies = (np.bincount(inverse, weights=~skipped) > 0)[inverse]
            total[applies] += weight * scores.values[applies, column]  # NaN unless the status is OK
            counted |= applies
        return np.where(counted, total, np.nan)

    def counts(self, scores: Scores) -> dict[str, dict[str, int]]:
        """Per reward, how many samples are ok, failed and skipped."""
        return {
            name: {label: int((scores.status[:, column] == code).sum()) for code, label in enumerate(STATUS_NAMES)}
            for column, name in enumerate(scores.names)
        }


def graded(samples: Sequence[Sample]) -> dict[str, Counter[str]]:
    """Per reward that says how its scores came about, how many of the scored `samples` have each word."""
    counts: dict[str, Counter[str]] = {}
    for sample in samples:
        for name, how in sample.meta.get("graded", {}).items():
            counts.setdefault(name, Counter())[how] += 1
    return counts


def lacking(reward: Reward, sample: Sample) -> list[Need]:
    """What `reward` needs and `sample` does not have."""
    has: dict[Need, bool] = {
        "text": sample.text is not None,
        "image": len(sample.images) > 0,
        "video": sample.video is not None,
        "target": sample.prompt.target is not None,
    }
    return [need for need in reward.needs if not has[need]]


def _outcomes(
    name: str,
    reward: Reward,
    samples: Sequence[Sample],
    rows: list[int],
    where: Sequence[str],
    group: Sequence[int] | None,
) -> list[tuple[int, float | str | None]]:
    """The rows and what `_score` says of them: all at once, or one group after another."""
    parts = [rows]
    if reward.scope != "pointwise":
        assert group is not None
        keys = dict.fromkeys(int(group[row]) for row in rows)
        parts = [[row for row in rows if int(group[row]) == key] for key in keys]
    found: list[tuple[int, float | str | None]] = []
    for part in parts:
        own, places = [samples[row] for row in part], [where[row] for row in part]
        found += zip(part, _score(name, reward, own, places), strict=True)
    return sorted(found, key=lambda pair: pair[0])


def _score(name: str, reward: Reward, samples: list[Sample], where: list[str]) -> list[float | str | None]:
    """Per sample a finite number, None (skipped) or the line that says why it failed."""
    if not samples:
        return []
    said = f"reward '{name}'"
    try:
        raw = _listed(reward.score(samples))
    except Exception as error:
        if reward.scope != "pointwise":  # one by one there is nothing to compare
            line = f"{said} raised {_one_line(type(error).__name__, error)}"
            return [f"{line}{place}{_line_of(error)}" for place in where]
        if len(samples) == 1:
            return [f"{said} raised {_one_line(type(error).__name__, error)}{where[0]}{_line_of(error)}"]
        return [_score(name, reward, [sample], [place])[0] for sample, place in zip(samples, where, strict=True)]
    if not isinstance(raw, list):
        return [
            f"{said} returned a {type(raw).__name__}{place}; expected a list with one number per sample"
            for place in where
        ]
    if len(raw) != len(samples):
        return [f"{said} returned {len(raw)} scores for {len(samples)} samples{place}" for place in where]
    return [_checked(value, said, reward.limits(), place) for value, place in zip(raw, where, strict=True)]


def _listed(raw: Any) -> Any:
    """Scores as a list where they are a sequence, an array or a tensor of one dimension; anything else unchanged."""
    if isinstance(raw, np.ndarray | torch.Tensor):
        return raw.tolist() if raw.ndim == 1 else raw
    return list(raw) if isinstance(raw, Sequence) and not isinstance(raw, str | bytes) else raw


def _checked(value: Any, who: str, limits: tuple[float | None, float | None], where: str) -> float | str | None:
    said = f"{who} returned"
    if value is None:
        return None
    if isinstance(value, Failed):
        return f"{who}: {_one_line(value.reason)}{where}"
    if isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, Real | np.bool_):
        got = f"{_one_line(repr(value))} ({type(value).__name__})"
        return f"{said} {got}{where}; expected a number, or None to skip the sample"
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        return f"{said} {number}{where}; expected a finite number, or None to skip the sample"
    low, high = limits
    if (low is not None and number < low - 1e-6) or (high is not None and number > high + 1e-6):
        return f"{said} {number:.6g}{where}; it declares the range {low} to {high}"
    return value if isinstance(value, Graded) else number


def _places(samples: Sequence[Sample]) -> list[str]:
    """' on sample 2 of prompt 'id'' for every sample: its number among the samples of that prompt, from 0."""
    seen: Counter[str] = Counter()
    places = []
    for sample in samples:
        places.append(f" on sample {seen[sample.prompt.id]} of prompt '{sample.prompt.id}'")
        seen[sample.prompt.id] += 1
    return places


def _one_line(*parts: Any) -> str:
    text = " ".join(": ".join(str(part) for part in parts if str(part)).split())
    return text if len(text) <= 300 else text[:297] + "..."


def _line_of(error: Exception) -> str:
    """' (file:line)' of the innermost frame that is in no library."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) != Path(__file__)]
    library = sysconfig.get_paths()["stdlib"]
    own = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith((library, "<"))]
    return "".join(f" ({frame.filename}:{frame.lineno})" for frame in (own or frames)[-1:])
