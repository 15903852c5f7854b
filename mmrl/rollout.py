"""What flows through the house: prompts, draws, samples, scores, rollouts and trees.

Legend for shapes: N samples, S steps, n rows of a chunk, s steps of a chunk, K rewards.
A *step* is one stochastic decision of the policy with a log-prob: a generated token or a denoising transition.
A *group* is the set of samples drawn for one prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """One request to the policy.

    `target` is what a verifier compares with (JSON-able); `media` holds image or video inputs (paths or uint8 arrays);
    `meta` is free (difficulty, source, hints ...).
    """

    id: str
    text: str
    media: tuple[Any, ...] = ()
    target: Any = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Draw:
    """One sample to be drawn: `member` of `group`, with a seed of its own.

    The seed depends on (run seed, stage, step, group, member) and not on the rank, so the number of processes does not
    change what is drawn. `group_seed` is shared by the members of the group (shared start noise).
    """

    prompt: Prompt
    group: int
    member: int
    seed: int
    group_seed: int
    view: str = "original"
    """What the policy sees while it draws this sample; replays score it under any view."""
    parent: int | None = None
    """The group whose prompt this sample answers a sub-question of (see `mmrl.curriculum.checklist`)."""


@dataclass
class Sample:
    """What a reward sees: the prompt and the output as text, images or a video. Never latents, never token ids.

    `images`: tuple of uint8 RGB arrays (H, W, 3). `video`: uint8 array (T, H, W, 3) with `meta["fps"]`.
    """

    prompt: Prompt
    text: str | None = None
    images: tuple[np.ndarray, ...] = ()
    video: np.ndarray | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass
class Tree:
    """Shared prefixes of samples: `node (N, S)` is the id of the node that sample i is in after step k.

    Two samples of one group share step k exactly when their node ids at k are equal; every process gives a node the same id.
    """

    node: Tensor


@dataclass(frozen=True)
class Chunk:
    """The part of a rollout that is replayed in one forward: row i covers sample `rows[i]` at steps `steps[i]`.

    `rows (n,)` int64 indexes samples, `steps (n, s)` int64 indexes steps. Tokens use s = S, denoising uses s = 1.
    """

    rows: Tensor
    steps: Tensor

    def take(self, values: Tensor) -> Tensor:
        """Pick this chunk's entries `(n, s)` from an `(N, S)` array, or `(n, 1)` from an `(N,)` array."""
        rows = self.rows.to(values.device)
        if values.dim() == 1:
            return values[rows][:, None]
        return values[rows[:, None], self.steps.to(values.device)]


@dataclass
class StepOutput:
    """What a replay returns for a chunk, with gradient: `log_prob (n, s)` float32, optional `entropy (n, s)` in nats.

    `dist` is private to the family (the Gaussian of a denoising step, the logits of a token) and is read only by the
    policy's own `divergence`.
    """

    log_prob: Tensor
    entropy: Tensor | None = None
    dist: Any = None


@dataclass
class Rollout:
    """N samples in groups with the behaviour policy's log-probs.

    `group (N,)` int64; `log_prob (N, S)` float32; `mask (N, S)` bool marks the steps the policy really drew (no padding,
    no tool output, no ODE step); `step_std (N, S)` float32 is the noise scale of a denoising step where the family has one.
    `entropy (N, S)` float32 in nats, where the rollout knows it. `engine_log_prob (N, S)` float32 are the log-probs that a
    separate inference engine reported for what it drew; `log_prob` are then those of the trainer's own model.
    `part (N,)` int64 divides groups further: samples are compared inside their part (fan-out); None: with the whole group.
    `payload` is read by the owning policy only. `stats` are plain numbers for the log (NFE or tokens per sample ...).
    """

    draws: Sequence[Draw]
    samples: list[Sample]
    group: Tensor
    log_prob: Tensor
    mask: Tensor
    payload: Any = None
    step_std: Tensor | None = None
    entropy: Tensor | None = None
    engine_log_prob: Tensor | None = None
    tree: Tree | None = None
    part: Tensor | None = None
    stats: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.draws)
        assert self.group.shape == (n,) and len(self.samples) == n
        assert self.log_prob.shape == self.mask.shape and self.log_prob.shape[0] == n
        assert self.log_prob.dtype == torch.float32 and self.mask.dtype == torch.bool
        for optional in (self.entropy, self.engine_log_prob):
            assert optional is None or optional.shape == self.mask.shape

    def __len__(self) -> int:
        return len(self.draws)


Status = Literal["ok", "failed", "skipped"]
OK, FAILED, SKIPPED = 0, 1, 2
STATUS_NAMES: tuple[Status, ...] = ("ok", "failed", "skipped")


@dataclass
class Scores:
    """K rewards on N samples: `values (N, K)` float64 with NaN wherever `status (N, K)` is not OK.

    A failed reward is never a number: the sample leaves the group statistics and the loss. A skipped reward does not
    apply to the sample (for example an image reward on a text-only row). `messages` holds one line per failure.
    """

    names: tuple[str, ...]
    values: np.ndarray
    status: np.ndarray
    messages: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert self.values.shape == self.status.shape and self.values.shape[1] == len(self.names)
        assert not np.isfinite(self.values[self.status != OK]).any(), "a failed or skipped reward must not be a number"
        assert np.isfinite(self.values[self.status == OK]).all(), "an ok reward must be finite"
