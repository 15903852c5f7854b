"""The seam of engines that write answers for a policy, and the engine that is the policy itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from mmrl.rollout import Draw
from mmrl.vlm.answers import Written
from mmrl.vlm.payload import Asked

if TYPE_CHECKING:
    from mmrl.vlm.policy import VlmPolicy


class RolloutEngine(BaseModel):
    """Writes the answers of rollouts. Evaluation and `generate` always ask the policy's own model."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    separate: ClassVar[bool] = True
    """Another program with its own copy of the weights: it reports log-probs, and they are not those of a replay."""

    def check(self) -> None:
        """Before a run: raises UserError when this engine cannot work here."""

    def publish(self, policy: VlmPolicy, version: str, writes: bool) -> None:
        """Draw with the present weights of `policy` from now on and ask for this `version` of them. Every process calls it,
        first and alone the one that `writes` what all share. Raises UserError when the engine does not take them."""

    @abstractmethod
    def write(self, policy: VlmPolicy, draws: Sequence[Draw], asked: Sequence[Asked], plan: Any) -> Written:
        """Answers to every prompt of `asked` in the order of `draws`, with the log-probs that the engine reports at
        `plan.temperature`. Raises UserError for an engine that does not answer, or not with the published weights."""


class Own(RolloutEngine):
    """The policy's own model."""

    separate: ClassVar[bool] = False
    kind: Literal["own"] = "own"

    def write(self, policy: VlmPolicy, draws: Sequence[Draw], asked: Sequence[Asked], plan: Any) -> Written:
        return policy.write(draws, asked, plan)
