"""What a config becomes: its stages and evaluation with the components that their names mean."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from pydantic import BaseModel

from mmrl.config.schema import (
    Config,
    DirectStage,
    DrawsStage,
    ExamplesStage,
    PreferenceStage,
    RLStage,
    StageSection,
    SupervisedStage,
)
from mmrl.config.source import Source
from mmrl.objective.objective import Objective
from mmrl.reward import Use


@dataclass
class ResolvedStage:
    """One stage: its section, the family's `train` block, and the components of its kind."""

    name: str
    section: StageSection
    train: BaseModel

    @property
    def complete(self) -> bool:
        """Whether every part could be built; one that could not is None until its problem is reported."""
        return all(getattr(self, part.name) is not None for part in fields(self))


@dataclass
class ResolvedExamples(ResolvedStage):
    section: ExamplesStage
    examples: Any


@dataclass
class ResolvedSupervised(ResolvedExamples):
    section: SupervisedStage


@dataclass
class ResolvedPreference(ResolvedExamples):
    section: PreferenceStage


@dataclass
class ResolvedDraws(ResolvedStage):
    """A stage with samples of its own; `plan` says how they are drawn."""

    section: DrawsStage
    prompts: Any
    plan: BaseModel
    rewards: dict[str, Use]

    @property
    def complete(self) -> bool:
        return super().complete and all(None not in (use.reward, *use.then) for use in self.rewards.values())


@dataclass
class ResolvedDirect(ResolvedDraws):
    section: DirectStage


@dataclass
class ResolvedRL(ResolvedDraws):
    section: RLStage
    objective: Objective
    parity_tolerance: float
    """The one in force: the config's, or `default_tolerance`."""


@dataclass
class ResolvedEvaluation:
    prompts: Any
    plan: Any
    """Of the policy's `sampling_type`, which has a `micro_batch`."""
    rewards: dict[str, Use]


@dataclass
class Resolved:
    """Everything a run needs, built from names and checked; `policy` has not loaded its weights yet."""

    config: Config
    source: Source
    policy: Any
    stages: list[ResolvedStage]
    evaluation: ResolvedEvaluation | None
