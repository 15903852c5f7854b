"""The typed schema of a config file. Every section is frozen and refuses unknown keys.

A component is written `{name: NAME, option: value, ...}` and is validated by the class that the name means
(see `mmrl.config.resolve`); blocks that belong to a model family (`rollout`, `train`, `sampling`) are validated by the
policy's own types.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from mmrl.parity import OldLogProbs

PositiveFinite = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Spec(BaseModel):
    """A component by name, its options beside it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class RewardSpec(Spec):
    """A reward and what a stage does with it."""

    weight: float = 1.0
    then: tuple[Spec, ...] = ()
    """What is done with the scores, in this order, before they are weighed and summed."""
    where: dict[str, Any] = Field(default_factory=dict)
    """Keys of the prompts' `meta` and the value, or the list of values, that a prompt must have there to be scored."""
    on_failure: Literal["mask", "raise"] = "mask"
    """`mask`: a sample on which it fails leaves the groups and the loss, and counts against the failure budget; `raise`: the run stops
    at the first one."""


class MethodSection(Section):
    """What a shipped config reproduces; printed by `mmrl list methods`."""

    name: str
    paper: str
    family: Literal["generative", "vlm"]
    kind: str


class RunSection(Section):
    name: str | None = None
    """Name of the run; default: the config's name."""
    dir: str | None = None
    """The run's folder; default: the next free `runs/NAME/001`."""
    seed: int = 0
    num_processes: PositiveInt | None = None
    """Refuse to start with another number of processes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: PositiveInt | None = None
    """CPU threads per process; default: the cores of the machine divided by the processes on it."""
    deterministic: bool = True
    """Ask torch for deterministic kernels (a warning where one does not exist)."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers of accelerate: tensorboard, wandb, ..."""


class CheckpointSection(Section):
    every: PositiveInt = 50
    """Steps between checkpoints; one is always written at the end of a stage."""
    keep_last: PositiveInt = 2


class EvaluationSection(Section):
    prompts: Spec
    samples_per_prompt: PositiveInt = 4
    every: PositiveInt | None = None
    """Steps of an rl stage between evaluations; before the first and after the last step there always is one."""
    seed: int = 0
    """Seed of the noise; the same at every evaluation and in every run, so that pictures can be compared."""
    sampling: dict[str, Any] = Field(default_factory=dict)
    rewards: dict[str, RewardSpec] = Field(default_factory=dict)
    """Held-out rewards: logged, never trained on."""
    by: tuple[str | tuple[str, ...], ...] = ()
    """Keys of the prompts' `meta` (kind, level, [kind, level] ...): every reward is also reported for each of their
    values, or combinations of values."""
    pictures: int = Field(default=12, ge=0)
    """How many of the prompts are drawn into the picture grids."""
    pictures_every: PositiveInt | None = None
    """Steps of an rl stage between picture grids; default: with every evaluation."""


class OptimizerSection(Section):
    lr: PositiveFinite
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: PositiveFinite = 1e-8
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    max_grad_norm: PositiveFloat | None = 1.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps over which the rate rises linearly from 0; fewer than those of the stage."""
    max_skipped: int = Field(default=10, ge=0)
    """Optimizer steps with a non-finite gradient that are skipped before the run stops."""


class EMASection(Section):
    """Moving average of the trained weights, decay min((1 + n) / (10 + n), decay) at optimizer step n."""

    decay: float = Field(default=0.99, gt=0, lt=1)
    every: PositiveInt = 1
    """Optimizer steps between two updates of the average."""


class StageSection(Section):
    kind: str
    steps: PositiveInt
    train: dict[str, Any] = Field(default_factory=dict)
    optimizer: OptimizerSection
    ema: EMASection | None = None
    """With an average, evaluation and everything after the stage use it."""
    micro_batch: PositiveInt = 64
    """Rows of one forward and backward pass (sample-step pairs for denoising, samples for tokens and supervised data)."""


class ExamplesStage(StageSection):
    """A stage that learns from given examples."""

    examples: Spec
    batch_size: PositiveInt
    """Examples (pairs) of one optimizer step."""


class SupervisedStage(ExamplesStage):
    kind: Literal["supervised"]


class PreferenceStage(ExamplesStage):
    """Pairs of answers of which one was preferred; the reference is the policy as the stage finds it."""

    kind: Literal["preference"]
    loss: Literal["dpo", "ipo", "hinge"] = "dpo"
    beta: PositiveFinite = 0.1
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of the pairs that are taken to be the wrong way round (dpo only)."""

    @model_validator(mode="after")
    def _smoothing_is_used(self) -> PreferenceStage:
        if self.label_smoothing and self.loss != "dpo":
            raise ValueError(f"label_smoothing belongs to loss: dpo, but loss is {self.loss}")
        return self


class DrawsStage(StageSection):
    """A stage that learns from what rewards say about its own samples."""

    prompts: Spec
    rewards: dict[str, RewardSpec] = Field(min_length=1)


class DirectStage(DrawsStage):
    """Rewards with a gradient: it goes through the picture into the last steps that drew it, without noise."""

    kind: Literal["direct"]
    batch_size: PositiveInt
    """Samples of one optimizer step, each of a prompt of its own."""
    sampling: dict[str, Any] = Field(default_factory=dict)
    method: Literal["draft", "refl"] = "draft"
    """`draft`: the last steps have a gradient (DRaFT-K); `refl`: a random one of them, whose clean prediction is scored (ReFL)."""
    last: PositiveInt = 1
    """How many steps from the end these are."""
    penalty: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight of the squared distance of these steps' predictions from those of the model as the stage finds it."""


class StepsSection(Section):
    select: Spec = Spec(name="all")
    weight: Spec = Spec(name="uniform")


class ObjectiveSection(Section):
    advantage: Spec
    shaping: tuple[Spec, ...] = ()
    selection: Spec = Spec(name="all")
    steps: StepsSection = StepsSection()
    surrogate: Spec = Spec(name="clip")
    terms: tuple[Spec, ...] = ()
    combine: Literal["rewards", "advantages", "losses"] = "rewards"
    """Where several rewards become one: summed before the advantage rule, as advantages after it, or as losses (DanceGRPO)."""
    normalise_weights: bool = False
    """Advantages, losses: divide the weights by their sum (MixGRPO)."""
    rescale: bool = False
    """Advantages: standardise the sum over the batch (GDPO)."""
    correction: Spec | None = None
    """Importance weights for the log-probs of an inference engine; default: none."""
    aggregate: Literal["token_mean", "seq_mean_token_sum", "seq_mean_token_mean", "seq_mean_token_sum_norm"] = (
        "token_mean"
    )
    max_steps: PositiveInt | None = None
    """The constant Lmax of seq_mean_token_sum_norm."""


class FailureSection(Section):
    """When reward failures stop a run."""

    share: float = Field(default=0.01, ge=0, le=1)
    window: PositiveInt = 50
    """Steps over which the share is counted."""


class RefillSection(Section):
    """Dynamic sampling: groups whose rewards do not differ are replaced until a step has `prompts_per_step` useful ones."""

    max_rounds: int = Field(default=3, ge=2)
    """Most rollouts of one step; when they are used up, the step trains on the useful groups it has."""
    low: float | None = None
    """Groups whose mean reward is not above this are replaced too."""
    high: float | None = None
    """Groups whose mean reward is not below this are replaced too."""


class KeepSection(Section):
    """Scored samples of a stage that are written below the run's folder, for `mmrl reward replay`."""

    every: PositiveInt
    """Those of the first step and of every step that it divides."""
    groups: PositiveInt | None = None
    """Only the first groups of a step; default: all of them."""


class ChecklistSection(Section):
    """Sub-questions of the step's prompts (`meta.checklist`) are asked too, in groups of their own."""

    questions: PositiveInt = 2
    """Most sub-questions of a prompt that are asked in one step."""
    group_size: int = Field(default=4, ge=2)
    """Samples of each."""


class CurriculumSection(Section):
    """What is drawn, beyond the order of the prompts."""

    refill: RefillSection | None = None
    checklist: ChecklistSection | None = None


class RLStage(DrawsStage):
    kind: Literal["rl"]
    prompts_per_step: PositiveInt
    group_size: PositiveInt
    rollout_parts: PositiveInt = 1
    """In how many parts the groups of a step are drawn; while one is drawn, the one before is scored in a thread. The update waits for
    all of them, so that nothing is trained on older weights."""
    updates_per_rollout: PositiveInt = 1
    """Optimizer steps made from one rollout, each on its own part of the samples."""
    epochs: PositiveInt = 1
    """Passes over one rollout."""
    rollout: dict[str, Any] = Field(default_factory=dict)
    failures: FailureSection = FailureSection()
    objective: ObjectiveSection
    curriculum: CurriculumSection = CurriculumSection()
    keep_samples: KeepSection | None = None
    """Which scored samples are kept; default: none."""
    old_log_probs: OldLogProbs = "auto"
    """What ratios start from: what the sampler said (`rollout`), a replay before the first update (`replay`), or a replay
    only where the sampler does not run the code of the update: outside float32, and with an inference engine (`auto`)."""
    parity_tolerance: PositiveFinite | None = None
    """Largest |ratio - 1| allowed before the first update; default: 1e-4, or half the clip range where that is less. A
    replay that is further off than the clip range would train on clipped steps alone. Of a sampler that is not exact it
    bounds the mean, by default that of the policy."""

    @model_validator(mode="after")
    def _parts_have_groups(self) -> RLStage:
        if self.rollout_parts > self.prompts_per_step:
            raise ValueError(
                f"rollout_parts {self.rollout_parts} divides the groups of a step, of which there are {self.prompts_per_step}; use that or less"
            )
        return self


def _stage_name(name: str) -> str:
    """A stage's name is part of file names, of log keys and of keys on the command line."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"a stage's name is made of letters, digits, _ and -, got {name!r}")
    return name


StageName = Annotated[str, AfterValidator(_stage_name)]
Stage = Annotated[SupervisedStage | PreferenceStage | DirectStage | RLStage, Field(discriminator="kind")]


class Config(Section):
    """A whole run: one policy that goes through stages, each with its own data, rewards and optimizer."""

    run: RunSection = RunSection()
    method: MethodSection | None = None
    policy: Spec
    stages: dict[StageName, Stage] = Field(min_length=1)
    evaluation: EvaluationSection | None = None
    checkpoint: CheckpointSection = CheckpointSection()
