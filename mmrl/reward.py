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
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
import torch
from pydantic import model_validator

from mmrl.components import Component
from mmrl.compose.transform import Seen, Transform
from mmrl.errors import UserError
from mmrl.parts import file_parts, restore_parts, take_parts
from mmrl.rollout import FAILED, OK, SKIPPED, STATUS_NAMES, Prompt, Sample, Scores

Scope = Literal["pointwise", "groupwise", "pairwise"]
Need = Literal["text", "image", "video", "target", "source"]
"""`source`: the prompt has media of its own (the picture that is edited, or asked about)."""


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
    takes: ClassVar[str] = "text, image or video"
    """In words what it scores, where `needs` is empty."""
    deterministic: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False
    """It has `score_tensor`."""
    revision: ClassVar[str] = "1"
    licence: ClassVar[str] = "unknown"

    @model_validator(mode="after")
    def _knows_its_needs(self) -> Reward:
        unknown = [need for need in self.needs if need not in get_args(Need)]
        if unknown:
            raise ValueError(
                f"class {type(self).__name__} needs {unknown[0]!r}; known needs: {', '.join(get_args(Need))}"
            )
        return self

    def limits(self) -> tuple[float | None, float | None]:
        """`range`, or a narrower one that follows from the options."""
        return self.range

    def inputs(self) -> tuple[Need, ...]:
        """What a run must offer for this reward to make sense: `needs`, or more that follows from the options."""
        return self.needs

    def check_prompt(self, prompt: Prompt) -> None:
        """Raises ValueError for a prompt whose samples this reward could never score. Asked of every prompt when a config is read."""
        return None

    def setup(self, device: torch.device) -> None:
        """Load weights and the like, once, before the first `score`."""
        return None

    def elsewhere(self) -> str:
        """What tells the model that scores from others where it does not run here (a hash that its server gave); known after `setup`."""
        return ""

    def at_once(self) -> int:
        """Groups that `score` may be asked about at a time, by threads; of rewards that are not pointwise."""
        return 1

    def stop(self) -> None:
        """Give up what `score` is waiting for; called from another thread when a run ends early."""
        return None

    def stats(self) -> dict[str, float]:
        """Numbers about the work since the last call, for the log (retries, latencies ...)."""
        return {}

    def score_tensor(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Scores `(B,)` with gradient of pictures `(B, 3, H, W)` float32 in [0, 1]; rewards that are `differentiable` have it."""
        raise NotImplementedError(f"{type(self).__name__} has no gradient")

    @abstractmethod
    def score(self, samples: Sequence[Sample]) -> Sequence[float | Failed | None]:
        """One number per sample, in order; None skips a sample, `Failed` says why it has none. Whatever is raised makes the
        samples failed: they are then scored one by one, to find those that fail."""


def set_up(reward: Reward, name: str, device: torch.device) -> None:
    """`reward.setup(device)`; raises UserError with one line for whatever it raises."""
    try:
        reward.setup(device)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{name} cannot be loaded: {_one_line(type(error).__name__, error)}{_line_of(error)}"
        ) from error


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


class Use(NamedTuple):
    """What a stage does with a reward: the weight of its scores in the sum, what is done with them before (`then`), which prompts
    it is asked about (`where`: values of `Prompt.meta`, or lists of them), and whether the first failure ends the run (`strict`)."""

    reward: Reward
    weight: float = 1.0
    then: tuple[Transform, ...] = ()
    where: Mapping[str, Any] = {}
    strict: bool = False

    def asks(self, prompt: Prompt) -> bool:
        """Whether the reward applies to a prompt."""
        return all(
            prompt.meta.get(key) in wanted if isinstance(wanted, list | tuple) else prompt.meta.get(key) == wanted
            for key, wanted in self.where.items()
        )


class RewardSet:
    """Scores samples with every reward and combines the scores.

    `rewards` maps a name to a `Use`, or the beginning of one: (reward, weight). Those named in `held_out` are scored and logged,
    never trained on. Raises UserError for a reward that cannot be scored here, and for a transform of a reward that is not here.
    """

    def __init__(self, rewards: Mapping[str, Use | tuple[Reward, float]], held_out: Collection[str] = ()) -> None:
        self.uses = tuple(Use(*use) for use in rewards.values())
        self.names = tuple(rewards)
        self.rewards = tuple(use.reward for use in self.uses)
        self.weights = tuple(
            0.0 if name in held_out else float(use.weight) for name, use in zip(self.names, self.uses, strict=True)
        )
        for name, use in zip(self.names, self.uses, strict=True):
            for one in (other for transform in use.then for other in transform.reads if other not in rewards):
                raise UserError(
                    f"reward '{name}' is changed by what reward '{one}' says, which is not one of {', '.join(rewards)}"
                )
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
    def strict(self) -> np.ndarray:
        """(K,) bool: the first failure of the reward ends the run."""
        return np.array([use.strict for use in self.uses], dtype=bool)

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
        for column, (name, use) in enumerate(zip(self.names, self.uses, strict=True)):
            reward = use.reward
            rows = [
                row for row, sample in enumerate(samples) if use.asks(sample.prompt) and not lacking(reward, sample)
            ]
            asked = [samples[row] for row in rows]
            earlier = take_parts(asked)
            outcomes = _outcomes(name, reward, samples, rows, where, group)
            left = take_parts(asked)
            restore_parts(asked, earlier)
            for row, outcome in outcomes:
                number = outcome is not None and not isinstance(outcome, str)
                wrong = file_parts(samples[row], name, left[id(samples[row])] if number else None)
                outcome = outcome if wrong is None else f"reward '{name}' left {wrong}{where[row]}"
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
        trained reward failed on it, or skipped it but not its whole group. A reward that skipped a whole group (or whose
        transforms read one that did) is left out of that group's sums; a group without any reward is NaN, never 0.
        """
        self.check_trained()
        values, applies = self.composed(scores, group)
        total = np.zeros(len(values))
        counted = np.zeros(len(total), dtype=bool)
        for column, weight in enumerate(self.weights):
            if weight:
                rows = applies[:, column]
                total[rows] += weight * values[rows, column]  # NaN unless every status is OK
                counted |= rows
        return np.where(counted, total, np.nan)

    def composed(self, scores: Scores, group: Any) -> tuple[np.ndarray, np.ndarray]:
        """The scores `(N, K)` after `then`, NaN where there is none, and where they belong into the sum `(N, K)` bool."""
        _, inverse = np.unique(np.asarray(group), return_inverse=True)
        asked = [np.bincount(inverse, weights=column != SKIPPED) > 0 for column in scores.status.T]
        applies = np.empty(scores.status.shape, dtype=bool)
        for column, use in enumerate(self.uses):
            read = {column, *(self.names.index(name) for transform in use.then for name in transform.reads)}
            applies[:, column] = np.logical_and.reduce([asked[one] for one in read])[inverse]
        found = [self._through(column, scores, group)[-1] for column in range(len(self.names))]
        values = np.stack(found, 1) if found else np.empty(scores.values.shape)
        return np.where(applies, values, np.nan), applies

    def _through(self, column: int, scores: Scores, group: Any) -> list[np.ndarray]:
        """The scores `(N,)` of a reward as they come to each of its transforms, and as they leave the last."""
        stages = [scores.values[:, column]]
        seen = self._seen(scores, group)
        for transform in self.uses[column].then:
            changed = np.asarray(transform(stages[-1], seen), dtype=np.float64)
            unscored = np.isnan(stages[-1])
            if changed.shape != unscored.shape or not np.isfinite(changed[~unscored & ~np.isnan(changed)]).all():
                raise UserError(
                    f"transform {type(transform).__name__} of reward '{self.names[column]}' made {changed.shape} of "
                    f"{unscored.shape} scores, or an infinite one; expected a finite number for every score"
                )
            stages.append(np.where(unscored, np.nan, changed))
        return stages

    def _seen(self, scores: Scores, group: Any) -> Seen:
        by_name = {name: scores.values[:, place] for place, name in enumerate(self.names)}
        return Seen(np.asarray(group, dtype=np.int64), by_name)

    def remember(self, scores: Scores, group: Any) -> None:
        """Let the transforms take in the scores of a step, from all ranks, once it is over."""
        seen = self._seen(scores, group)
        for column, use in enumerate(self.uses):
            for transform, values in zip(use.then, self._through(column, scores, group)[:-1], strict=True):
                transform.remember(values, seen)

    def transform_metrics(self, scores: Scores, group: Any) -> dict[str, float]:
        """For the log: the mean of every reward that transforms changed, as `NAME/then`, and what these say of themselves."""
        values, _ = self.composed(scores, group)
        found: dict[str, float] = {}
        for name, use, column in zip(self.names, self.uses, values.T, strict=True):
            if use.then and np.isfinite(column).any():
                found[f"{name}/then"] = float(np.nanmean(column))
            found |= {f"{name}/{key}": value for transform in use.then for key, value in transform.metrics().items()}
        return found

    def state(self) -> dict[str, list[dict[str, Any]]]:
        """JSON-able; what a checkpoint keeps of the transforms."""
        return {
            name: [one.state() for one in use.then]
            for name, use in zip(self.names, self.uses, strict=True)
            if any(one.remembers for one in use.then)
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        for name, kept in state.items():
            for transform, own in zip(self.uses[self.names.index(name)].then, kept, strict=True):
                transform.load_state(own)

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
        "source": len(sample.prompt.media) > 0,
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
    """The rows and what `_score` says of them: all at once, or group by group."""
    parts = [rows]
    if reward.scope != "pointwise":
        assert group is not None
        keys = dict.fromkeys(int(group[row]) for row in rows)
        parts = [[row for row in rows if int(group[row]) == key] for key in keys]

    def scored(part: list[int]) -> list[float | str | None]:
        return _score(name, reward, [samples[row] for row in part], [where[row] for row in part])

    threads = min(reward.at_once(), len(parts))
    with ThreadPoolExecutor(threads) if threads > 1 else nullcontext() as pool:
        told = map(scored, parts) if pool is None else pool.map(scored, parts)
        found = [pair for part, own in zip(parts, told, strict=True) for pair in zip(part, own, strict=True)]
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
