"""The seam between the core and a model family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from pydantic import BaseModel
from torch import Tensor

from mmrl.rollout import Chunk, Draw, Prompt, Rollout, Sample, StepOutput

ModelName = Literal["policy", "reference", "ema"]


class Policy(Protocol):
    """A stochastic policy whose outputs are made of steps with a log-prob. It is a component: everything above `rollout`
    works before `load`, without a weight.

    `replay` must run the same code as `rollout`: with unchanged weights it gives the log-probs stored in the rollout
    (the trainer checks this before the first update of a run).

    A policy may also have
    - `exact_log_probs` (bool): false when its rollouts are drawn by other code than `replay` runs, so that both agree but for
      rounding; the trainer then replays the old log-probs, and `replay_tolerance` bounds the mean |ratio - 1| at the start;
    - `makes`: "text", "image" or "video", what its samples are, so that a reward that needs another is refused;
    - `media_role`: what the media of a prompt are to it: None (it takes none), "first_frame" (one picture) or "edit" (one or
      more pictures); without it, it looks at any pictures and videos;
    - `publish(version, writes)`: called on every rank before each rollout, first and alone on the one that `writes`; what
      draws for this policy must from then on draw with the present weights, and be asked for this `version` of them.
    - `measure(name, rollout, micro_batch)`: numbers `(n,)` of the samples by the names that its `offers` list;
    - `renoised(rollout, forward)`: the finished samples of a rollout as a surrogate with a `forward` sees them, a rollout
      whose steps are noise levels;
    - `drawn_with_gradient(draws, plan, method, last, at, penalty)`: pictures `(B, 3, H, W)` in [0, 1] with gradient, as a direct
      stage asks for them, and `(B,)` how far their steps' predictions are from the reference's (0 without `penalty`); `at`
      chooses the step where one is chosen;
    - `forced_steps(plan)`: steps `(S,)` bool that its rollouts train whatever the step selector says;
    - `trained_pairs(plan, steps, trained, group)`: how many (sample, step) pairs a group trains, where samples share steps or train
      different ones; else `trained` of each;
    - `as_slow()`: a context in which `rollout` draws with the slow copy of the weights;
    - `keep_slow()`, called when a stage starts that wants one: keep a slow copy of what is trained, as it is then, which
      `frozen_state` holds too and `replay` runs as model "ema"; `follow(decay)`: slow <- decay slow + (1 - decay) weights.
    """

    plan_type: ClassVar[type[BaseModel]]
    """The pydantic model that validates the `rollout:` block of a stage."""

    sampling_type: ClassVar[type[BaseModel]]
    """The pydantic model that validates the `evaluation.sampling:` block: how samples are drawn when nothing is learned.
    Its `micro_batch` is the number of samples that an evaluation asks for at a time."""

    train_type: ClassVar[type[BaseModel]]
    """The pydantic model that validates the `train:` block of a stage (what is trained, and how)."""

    exports: ClassVar[tuple[str, ...]]
    """Formats of `mmrl export`."""

    flat_chunks: ClassVar[bool]
    """A chunk row is one (sample, step) pair (denoising) rather than one sample with all its steps (tokens)."""

    blind_view: ClassVar[str | None]
    """The view in which a policy that looks at media sees nothing: every evaluation asks the same questions through it
    too. None for a policy that only draws."""

    def check_plan(self, plan: Any, objective: Any) -> None:
        """Raise ValueError with the valid settings when `plan` cannot feed `objective` (no likelihood, no exact KL ...)."""
        ...

    def plan_steps(self, plan: Any) -> int:
        """S, the number of steps of a rollout under `plan` (for tokens: the largest)."""
        ...

    def stochastic_steps(self, plan: Any, allowed: Tensor) -> Tensor:
        """Steps `(S,)` bool that have a log-prob when the step selector allows `allowed (S,)`."""
        ...

    def trains(self, train: Any) -> str:
        """What a stage with this `train` block trains, in words."""
        ...

    def passes(self, plan: Any, steps: Tensor, trained: int, group: int, replays: float) -> dict[str, float]:
        """Forward passes of the network per sample by phase, in groups of `group`, where an iteration may train `steps (S,)` bool
        and trains `trained` of a sample, each being replayed `replays` times (once with gradient, the others for the terms
        of the objective)."""
        ...

    def check_train(self, train: Any) -> None:
        """Raise ValueError with the valid settings when this kind of model cannot be trained as `train` says."""
        ...

    def load(self, device: torch.device) -> None:
        """Load the weights. Raises UserError when they cannot be loaded."""
        ...

    def check_loaded(self, train: Any, plan: Any) -> None:
        """After `load`: raise UserError when a stage's `train` or a rollout's or evaluation's plan does not fit the loaded
        model (targets, patterns, sizes); either may be None. Called for every stage before the first one starts."""
        ...

    def fits(self, prompts: Sequence[Prompt]) -> tuple[list[Prompt], dict[str, int]]:
        """The prompts that can be read whole, and the lengths by id of those that cannot (they are never cut)."""
        ...

    def rollout(self, draws: Sequence[Draw], plan: Any, steps: Tensor) -> Rollout:
        """Draw one sample per draw, without gradient. `steps (S,)` bool: the steps this iteration may train."""
        ...

    def chunks(self, rollout: Rollout, train: Tensor, micro_batch: int) -> Iterator[Chunk]:
        """Split the trained part `train (N, S)` bool into chunks of at most `micro_batch` rows."""
        ...

    def replay(self, rollout: Rollout, chunk: Chunk, view: str = "original", model: ModelName = "policy") -> StepOutput:
        """Log-probs of the stored steps under `model`, the conditioning seen through `view`."""
        ...

    def divergence(self, p: StepOutput, q: StepOutput, norm: str) -> Tensor:
        """Exact KL(p || q) per step `(n, s)`; raises UserError where the family has none."""
        ...

    def generate(self, draws: Sequence[Draw], plan: Any, view: str = "original") -> list[Sample]:
        """Samples for evaluation and pictures: no log-probs, nothing stored; the conditioning seen through `view`."""
        ...

    def supervised_loss(self, examples: Sequence[Sample], seeds: Sequence[int]) -> Tensor:
        """Per-example loss `(B,)` with gradient (next-token or flow-matching); example i draws its noise from `seeds[i]`."""
        ...

    def given(self, samples: Sequence[Sample]) -> Rollout:
        """A rollout of texts that somebody else wrote, for `replay` (preference stages); its log-probs are 0. Only policies
        that write text have it."""
        ...

    def prepare(self, train: Any, reference: bool) -> None:
        """Called when a stage starts: set what is trainable (`train` is a `train_type`), freeze and cache the rest.

        With `reference`, keep what `replay(model="reference")` needs: nothing for an adapter, a frozen copy otherwise.
        """
        ...

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """Name -> parameter of what the current stage trains, in a fixed order."""
        ...

    def frozen_state(self) -> Mapping[str, Tensor]:
        """What a checkpoint needs beyond `trainable()` to restore this policy in the current stage (name -> tensor)."""
        ...

    def load_frozen_state(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `frozen_state`."""
        ...

    def save(self, folder: Path) -> None:
        """Write the model so that `from_pretrained` of its own library (and of this policy) loads it."""
        ...

    def export(self, folder: Path, to: str, plan: Any) -> Path:
        """Write for other programs; `to` is one of `exports`, `plan` is how the model is to be sampled."""
        ...
