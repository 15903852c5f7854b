"""What an author of a reward writes.

A score is a number, None (*skipped*: the reward does not apply) or a failure (an exception, NaN, what is no number). A
failure never turns into a number: the sample is left out of its group's statistics and of the loss.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from pydantic import ValidationError, model_validator

from mmrl.components import Component
from mmrl.errors import UserError, line_of, one_line
from mmrl.rollout import Prompt, Sample

Scope = Literal["pointwise", "groupwise", "pairwise"]
Need = Literal["text", "image", "video", "target", "source"]
"""`source`: the prompt has media of its own (the picture that is edited, or asked about)."""


FROZEN = "options do not change; what a reward loads or remembers belongs in a private attribute"


class Graded(float):
    """A score that says in one word how it came about: the rule that read an answer, "unparsed", "truncated" ...

    The word does not change the score. `RewardSet.score` leaves it in `Sample.meta["graded"][name of the reward]`.
    """

    how: str

    def __new__(cls, value: float, how: str) -> Graded:
        self = super().__new__(cls, value)
        self.how = how
        return self

    def __getnewargs__(self) -> tuple[float, str]:  # type: ignore[override]
        return float(self), self.how


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
    `PairwiseReward` in `mmrl.reward.pairwise`, which is given whole groups as well)."""
    needs: ClassVar[tuple[Need, ...]] = ()
    """A sample that lacks one of these is skipped and never reaches `score`."""
    takes: ClassVar[str] = "text, image or video"
    """In words what it scores, where `needs` is empty."""
    deterministic: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False
    """It has `score_tensor`."""
    revision: ClassVar[str] = "1"
    licence: ClassVar[str] = "unknown"

    @model_validator(mode="before")
    @classmethod
    def _keeps_to_options(cls, given: Any) -> Any:
        for name in sorted(Reward.__class_vars__ & cls.model_fields.keys()):
            raise ValueError(
                f"class {cls.__name__}: {name} describes the reward and is no option; write it without a type "
                f"({name} = ...), or as ClassVar"
            )
        return given

    @model_validator(mode="after")
    def _describes_itself(self) -> Reward:
        said, needs = f"class {type(self).__name__}", self.needs
        if not isinstance(needs, list | tuple):
            raise ValueError(f"{said} has needs = {needs!r}; expected a tuple, such as ('image',)")
        unknown = [need for need in needs if need not in get_args(Need)]
        if unknown:
            raise ValueError(f"{said} needs {unknown[0]!r}; known needs: {', '.join(get_args(Need))}")
        if self.scope not in get_args(Scope):
            raise ValueError(f"{said} has scope = {self.scope!r}; expected one of {', '.join(get_args(Scope))}")
        for name in ("higher_is_better", "deterministic", "differentiable"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{said} has {name} = {getattr(self, name)!r}; expected True or False")
        for name in ("revision", "licence"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{said} has {name} = {getattr(self, name)!r}; expected a text")
        try:
            bounds(self.range)
        except ValueError as error:
            raise ValueError(f"{said} has range = {error}") from None
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
        with staying():
            reward.setup(device)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name} cannot be loaded: {worded(error)}{line_of(error, __file__)}") from error


def worded(error: BaseException) -> str:
    """The class of an error and what it says, in one line."""
    try:
        said = str(error)
    except Exception:
        said = "?"
    if isinstance(error, ValidationError) and error.errors()[0]["type"] == "frozen_instance":
        name = error.errors()[0]["loc"][0]
        said = f"self.{name} = ...: {FROZEN}, such as _{name}: Any = PrivateAttr(None)"
    return one_line(type(error).__name__, said)


def bounds(given: Any) -> tuple[float | None, float | None]:
    """`given` if it is a (smallest, largest) score, either None for none. Raises ValueError that says what it is instead."""
    wanted = "expected (smallest, largest), either None for none"
    if not isinstance(given, list | tuple) or len(given) != 2:
        raise ValueError(f"{given!r}; {wanted}")
    low, high = given
    if any(one is not None and (not isinstance(one, Real) or math.isnan(one)) for one in given):
        raise ValueError(f"{given!r}; {wanted}")
    if low is not None and high is not None and low >= high:
        raise ValueError(f"{given!r}, from {low:g} to {high:g}; {wanted}")
    return low, high


@contextmanager
def staying() -> Iterator[None]:
    """Raises RuntimeError for a `sys.exit` in here: a reward that leaves has failed, and a run does not end as if it were done."""
    try:
        yield
    except SystemExit as stop:
        raise RuntimeError(f"called sys.exit({stop.code!r})").with_traceback(stop.__traceback__) from None


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


def frame_rate(sample: Sample) -> float:
    """Frames per second of the sample's video, `meta["fps"]`. Raises ValueError where it is none."""
    rate = sample.meta.get("fps")
    if isinstance(rate, bool) or not isinstance(rate, Real) or not 0 < float(rate) < math.inf:
        raise ValueError(
            f"the video has no frame rate: sample.meta['fps'] is {rate!r}; expected a positive number of frames per second"
        )
    return float(rate)


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
