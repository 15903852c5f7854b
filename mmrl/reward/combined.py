"""Several rewards: who scores what, and what becomes of the scores on the way into the sum.

Shapes: N samples, K rewards.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmrl.compose.transform import Seen, Transform
from mmrl.errors import UserError
from mmrl.reward.base import Graded, Reward, lacking
from mmrl.reward.parts import file_parts, restore_parts, take_parts
from mmrl.reward.scored import outcomes, places, printable
from mmrl.rollout import FAILED, OK, SKIPPED, Prompt, Sample, Scores


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

    @property
    def strict(self) -> np.ndarray:
        """(K,) bool: the first failure of the reward ends the run."""
        return np.array([use.strict for use in self.uses], dtype=bool)

    @property
    def reads_groups(self) -> bool:
        """Some reward compares the samples of a group, so that a process must hold whole groups."""
        return any(reward.scope != "pointwise" for reward in self.rewards)

    def score(self, samples: Sequence[Sample], group: Sequence[int] | None = None) -> Scores:
        """Every reward on every sample; what a reward raises becomes a failure (`sys.exit` too; not KeyboardInterrupt).

        `group (N,)` says which samples are compared with each other. Raises UserError where a reward needs it and it is missing.
        """
        if self.reads_groups and group is None:
            raise UserError("a reward compares the samples of a group, and nothing says what the groups are")
        values = np.full((len(samples), len(self.rewards)), np.nan)
        status = np.full(values.shape, SKIPPED, dtype=np.int64)
        messages: list[str] = []
        where = places(samples)
        for column, (name, use) in enumerate(zip(self.names, self.uses, strict=True)):
            reward = use.reward
            rows = [
                row for row, sample in enumerate(samples) if use.asks(sample.prompt) and not lacking(reward, sample)
            ]
            asked = [samples[row] for row in rows]
            earlier = take_parts(asked)
            told = outcomes(name, reward, samples, rows, where, group)
            left = take_parts(asked)
            restore_parts(asked, earlier)
            for row, outcome in told:
                number = outcome is not None and not isinstance(outcome, str)
                wrong = file_parts(samples[row], name, left[id(samples[row])] if number else None)
                outcome = outcome if wrong is None else f"reward '{name}' left {wrong}{where[row]}"
                if isinstance(outcome, str):
                    status[row, column] = FAILED
                    messages.append(printable(outcome))
                elif outcome is not None:
                    status[row, column], values[row, column] = OK, outcome
                    if isinstance(outcome, Graded):
                        known = samples[row].meta.get("graded")
                        said = known if isinstance(known, dict) else {}
                        samples[row].meta["graded"] = {**said, name: str(outcome.how)}
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
        stages = [_read_only(scores.values[:, column])]
        seen = self._seen(scores, group)
        for transform in self.uses[column].then:
            changed = np.asarray(transform(stages[-1], seen), dtype=np.float64)
            unscored = np.isnan(stages[-1])
            if changed.shape != unscored.shape or not np.isfinite(changed[~unscored & ~np.isnan(changed)]).all():
                raise UserError(
                    f"transform {type(transform).__name__} of reward '{self.names[column]}' made {changed.shape} of "
                    f"{unscored.shape} scores, or an infinite one; expected a finite number for every score"
                )
            stages.append(_read_only(np.where(unscored, np.nan, changed)))
        return stages

    def _seen(self, scores: Scores, group: Any) -> Seen:
        by_name = {name: _read_only(scores.values[:, place]) for place, name in enumerate(self.names)}
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
        seen = self._seen(scores, group)
        found: dict[str, float] = {}
        for name, use, column in zip(self.names, self.uses, values.T, strict=True):
            if use.then and np.isfinite(column).any():
                found[f"{name}/then"] = float(np.nanmean(column))
            came = self._through(self.names.index(name), scores, group)[:-1] if use.then else []
            for transform, given in zip(use.then, came, strict=True):
                found |= {f"{name}/{key}": value for key, value in transform.metrics(given, seen).items()}
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


def _read_only(values: np.ndarray) -> np.ndarray:
    """The scores for a transform: one that writes into them would change what the others, and the log, see."""
    view = values.view()
    view.flags.writeable = False
    return view


def graded(samples: Sequence[Sample]) -> dict[str, Counter[str]]:
    """Per reward that says how its scores came about, how many of the scored `samples` have each word."""
    counts: dict[str, Counter[str]] = {}
    for sample in samples:
        for name, how in sample.meta.get("graded", {}).items():
            counts.setdefault(name, Counter())[how] += 1
    return counts
