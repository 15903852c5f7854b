"""One stage's optimizer: global gradient, guard against non-finite steps, clipping, learning rate, moving average."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mmrl.config.schema import EMASection, OptimizerSection
from mmrl.distributed import Group
from mmrl.ema import EMA
from mmrl.errors import RunError, UserError


def lr_factor(section: OptimizerSection, step: int, total: int) -> float:
    """Share of `lr` at optimizer step `step` of `total`: linear warm-up from 0, then constant, linear or cosine to 0."""
    if step < section.warmup_steps:
        return step / section.warmup_steps
    progress = min(1.0, (step - section.warmup_steps) / max(1, total - section.warmup_steps))
    if section.schedule == "linear":
        return 1.0 - progress
    if section.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0


class Optimization:
    """Turns the losses of one update into one optimizer step that is the same on every rank."""

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        section: OptimizerSection,
        ema: EMASection | None,
        total_steps: int,
        group: Group,
    ) -> None:
        self.names = list(parameters)
        self.parameters = list(parameters.values())
        self.section, self.ema_section = section, ema
        self.total_steps, self.group = total_steps, group
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=section.lr,
            betas=section.betas,
            eps=section.eps,
            weight_decay=section.weight_decay,
            fused=True,
        )
        self.ema = EMA(self.parameters, ema.decay) if ema is not None else None
        self.steps = 0
        self.skipped = 0

    def apply(self, losses: Iterable[Tensor]) -> dict[str, float]:
        """Accumulate the gradients of `losses` (each already divided by the global count), then step.

        A non-finite gradient skips the step on all ranks. Returns `grad_norm` (before clipping), `lr` and `skipped`.
        Raises RunError past `max_skipped` skipped steps.
        """
        self.optimizer.zero_grad(set_to_none=True)
        problem: UserError | None = None
        try:
            for loss in losses:
                loss.backward()
        except UserError as error:
            problem = error
        self.group.raise_together(problem)
        self.group.sum_gradients(self.parameters)
        limit = self.section.max_grad_norm
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, math.inf if limit is None else limit))
        lr = self.section.lr * lr_factor(self.section, self.steps, self.total_steps)
        self.steps += 1
        if not math.isfinite(norm):
            self._skip()
            return {"lr": lr, "skipped": 1.0}
        for param_group in self.optimizer.param_groups:
            param_group["lr"] = lr
        self.optimizer.step()
        if self.ema is not None and self.ema_section is not None and self.steps % self.ema_section.every == 0:
            self.ema.update(self.parameters, self.steps)
        return {"grad_norm": norm, "lr": lr, "skipped": 0.0}

    def pass_over(self) -> None:
        """An update without signal: no step, but the schedule goes on."""
        self.steps += 1

    def _skip(self) -> None:
        self.skipped += 1
        if self.skipped > self.section.max_skipped:
            raise RunError(
                f"{self.skipped} optimizer steps had a non-finite gradient (allowed: max_skipped={self.section.max_skipped}); "
                "lower optimizer.lr or max_grad_norm, or look at the rewards and log-probs of the last steps in metrics.jsonl"
            )

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the parameters hold the moving average (if there is one)."""
        if self.ema is None:
            yield
            return
        with self.ema.swapped_in(self.parameters):
            yield

    def hand_on(self) -> None:
        """End of the stage: what comes after uses the moving average (if there is one)."""
        if self.ema is not None:
            self.ema.copy_to(self.parameters)

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Tensors by file for a checkpoint, and plain numbers."""
        moments = {
            f"{self.names[index]}|{key}": value
            for index, entry in self.optimizer.state_dict()["state"].items()
            for key, value in entry.items()
        }
        tensors = {"optimizer": moments}
        numbers: dict[str, Any] = {"steps": self.steps, "skipped": self.skipped}
        if self.ema is not None:
            tensors["ema"] = dict(zip(self.names, self.ema.shadow, strict=True))
        return tensors, numbers

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]], numbers: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        index_of = {name: index for index, name in enumerate(self.names)}
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors["optimizer"].items():
            parameter, _, key = name.rpartition("|")
            moments.setdefault(index_of[parameter], {})[key] = value
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.steps, self.skipped = int(numbers["steps"]), int(numbers["skipped"])
        if self.ema is not None:
            for name, shadow in zip(self.names, self.ema.shadow, strict=True):
                shadow.copy_(tensors["ema"][name])
