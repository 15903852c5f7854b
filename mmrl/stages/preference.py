"""A preference stage: pairs of answers to one prompt, of which one was preferred (DPO and its relatives)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmrl.config.resolve import ResolvedPreference
from mmrl.distributed import Group, slice_of
from mmrl.errors import UserError
from mmrl.meter import Meter
from mmrl.objective.preference import margin, preference_loss
from mmrl.policy import Policy
from mmrl.rollout import Sample
from mmrl.stages.work import Updates


class PreferenceWork:
    """Mean loss over a global batch of pairs; pair `i` of the stage is a pure function of `i` and the seed."""

    def __init__(self, stage: ResolvedPreference, policy: Policy, group: Group, seed: int) -> None:
        self.stage, self.policy, self.group = stage, policy, group
        self.examples = stage.examples.open(seed)
        self.updates_per_step = 1
        self.samples_per_step = stage.section.batch_size

    def updates(self, step: int, meter: Meter) -> Updates:
        yield self._losses(step, meter)

    def _losses(self, step: int, meter: Meter) -> Iterator[Tensor]:
        section, size = self.stage.section, self.samples_per_step
        indices = list(range(step * size, (step + 1) * size))[slice_of(size, self.group.rank, self.group.world)]
        for start in range(0, len(indices), section.micro_batch):
            with meter.time("data"):
                pairs = [self.examples.example(index) for index in indices[start : start + section.micro_batch]]
            with meter.time("update"):
                margins = self._margins(pairs)
                loss = preference_loss(margins, section.beta, section.loss, section.label_smoothing)
                meter.add("loss", float(loss.detach().sum()), len(pairs))
                meter.add("preferred", float((margins.detach() > 0).sum()), len(pairs))
                meter.add("margin", float(margins.detach().sum()), len(pairs))
                yield loss.sum() / size

    def _margins(self, pairs: list[Sample]) -> Tensor:
        """How much more than the reference the policy prefers the chosen answers, `(B,)` with gradient."""
        given = self.policy.given([answer for pair in pairs for answer in (pair, _rejected(pair))])
        (chunk,) = self.policy.chunks(given, given.mask, 2 * len(pairs))
        mask = chunk.take(given.mask)
        new = self.policy.replay(given, chunk).log_prob
        with torch.no_grad():
            reference = self.policy.replay(given, chunk, model="reference").log_prob
        sums = [one.masked_fill(~mask.to(one.device), 0.0).sum(1).view(-1, 2) for one in (new, reference)]
        return margin(sums[0][:, 0], sums[0][:, 1], sums[1][:, 0], sums[1][:, 1])

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        pass


def _rejected(pair: Sample) -> Sample:
    """The answer that was not preferred. Raises UserError for an example that is no pair."""
    rejected = pair.meta.get("rejected")
    if not isinstance(rejected, str) or not pair.text:
        raise UserError(
            f"example '{pair.prompt.id}' is no pair of answers; a preference stage needs examples with a chosen and a "
            "rejected one (examples: {name: preference, ...})"
        )
    return replace(pair, text=rejected, meta={})
