"""Which weights of a policy's modules a stage trains, what the reference is, and what a checkpoint must hold."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmrl import lora
from mmrl.errors import UserError


@dataclass(frozen=True)
class Choice:
    """What a stage trains: all weights of `parts` (or those whose names fit `patterns`), or a LoRA on the layers `targets`
    of each of them; nothing below the `frozen` prefixes of a part."""

    mode: Literal["full", "lora"]
    parts: tuple[str, ...]
    patterns: tuple[str, ...] | None = None
    frozen: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    rank: int = 32
    alpha: int = 64
    seed: int = 0
    aside: tuple[str, ...] = ()
    """LoRA: prefixes whose layers a target means only when it fits no other layer."""
    whole_parts: bool = False
    """Full: every weight of `parts` is float32 meanwhile, not only those that are trained (for a module that takes the
    dtype of its activations from one of its weights)."""


class Weights:
    """The stage's trainable and frozen weights of `modules` (part name -> module). Names are `part.parameter`.

    Weights that are trained in full are float32 while they are; those of a LoRA always are.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = modules
        self.choice: Choice | None = None
        self.reference: dict[str, nn.Module] = {}
        self.has_reference = False
        self.slow: dict[str, Tensor] = {}
        """The slow copy of what the stage trains, by name; empty where none is kept."""
        self.peft_configs: dict[str, Any] = {}
        """Of a LoRA: peft's config by part."""
        self.dtypes: dict[nn.Parameter, torch.dtype] = {}
        self.changed: set[str] = set()
        """Parts whose weights are no longer those that were loaded, without counting what the stage trains."""

    def prepare(self, choice: Choice, reference: bool) -> None:
        """Start a stage: merge an earlier adapter, freeze everything, then free (or add) what `choice` trains.

        Raises UserError for patterns and targets that the modules do not have."""
        chosen = self.select(choice)
        self._end_stage()
        if reference and choice.mode == "full":  # before the weights are widened: it keeps that of linear layers
            self.reference = {p: copy.deepcopy(self.modules[p]).requires_grad_(False) for p in choice.parts}
        if choice.mode == "lora":
            for part in choice.parts:
                own = sorted(name.removeprefix(f"{part}.") for name in chosen if name.startswith(f"{part}."))
                self.peft_configs[part] = lora.add(self.modules[part], choice.rank, choice.alpha, own, choice.seed)
        else:
            for part in choice.parts:
                for name, parameter in self.modules[part].named_parameters():
                    parameter.requires_grad_(f"{part}.{name}" in chosen)
                    if parameter.requires_grad or choice.whole_parts:
                        self._to_float32(parameter)
            for part, module in self.reference.items():
                _match_dtypes(module, self.modules[part])
        self.choice, self.has_reference = choice, reference or choice.mode == "lora"

    def select(self, choice: Choice) -> set[str]:
        """Full names of the parameters that `choice` trains, or of the layers that its LoRA is put on; changes nothing.

        Raises UserError for patterns and targets that the modules do not have."""
        if choice.mode == "lora":
            return {
                f"{part}.{name}"
                for part in choice.parts
                for name in lora.find_targets(self.modules[part], choice.targets, choice.frozen, choice.aside)
            }
        names = [
            (part, name.replace(".base_layer.", "."))
            for part in choice.parts
            for name, _ in self.modules[part].named_parameters()
            if "lora_" not in name
        ]
        free = [(part, name) for part, name in names if not lora.below(name, choice.frozen)]
        if choice.patterns is None:
            return {f"{part}.{name}" for part, name in free}
        chosen: set[str] = set()
        for pattern in choice.patterns:
            fits = {f"{part}.{name}" for part, name in free if fnmatchcase(name, pattern)}
            if not fits:
                near = difflib.get_close_matches(pattern, [name for _, name in free], n=3, cutoff=0.3)
                frozen = f" outside {', '.join(choice.frozen)} (frozen)" if choice.frozen else ""
                raise UserError(
                    f"train.parameters: '{pattern}' fits no parameter of {', '.join(choice.parts)}{frozen}; near: {near}"
                )
            chosen |= fits
        return chosen

    @property
    def is_lora(self) -> bool:
        return self.choice is not None and self.choice.mode == "lora"

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of what the stage trains, in a fixed order."""
        return {
            f"{part}.{name}": parameter
            for part in (self.choice.parts if self.choice is not None else ())
            for name, parameter in self.modules[part].named_parameters()
            if parameter.requires_grad
        }

    @contextmanager
    def as_reference(self) -> Iterator[Mapping[str, nn.Module]]:
        """The modules as they were when the stage started. Raises UserError when none were kept."""
        if not self.has_reference:
            raise UserError("no reference was kept for this stage: prepare(train, reference=True) comes first")
        if self.choice is not None and self.is_lora:
            with ExitStack() as stack:
                for part in self.choice.parts:
                    stack.enter_context(lora.disabled(self.modules[part]))
                yield self.modules
        else:
            yield {**self.modules, **self.reference}

    def keep_slow(self) -> None:
        """Keep a slow copy of what the stage trains, as it is now. Of a LoRA it is a copy of both factors."""
        self.slow = {name: parameter.detach().clone() for name, parameter in self.trainable().items()}

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """`slow <- decay slow + (1 - decay) weights`."""
        trained = self.trainable()
        torch._foreach_lerp_(list(self.slow.values()), [trained[name].detach() for name in self.slow], 1.0 - decay)

    @contextmanager
    def as_slow(self) -> Iterator[Mapping[str, nn.Module]]:
        """The modules with the slow copy in place of the trained weights, which come back afterwards; nothing is copied.

        For forward passes without gradient. Raises UserError when no slow copy is kept."""
        if not self.slow:
            raise UserError("no slow copy of the weights is kept for this stage: keep_slow() comes first")
        trained = self.trainable()
        own = {name: trained[name].data for name in self.slow}
        try:
            for name, value in self.slow.items():
                trained[name].data = value
            yield self.modules
        finally:
            for name, value in own.items():
                trained[name].data = value

    def frozen_state(self) -> dict[str, Tensor]:
        """Weights that differ from the loaded model without being trained, the frozen reference and the slow copy."""
        trained = set(self.trainable())
        state = {
            f"model.{part}.{name}": value.detach()
            for part in sorted(self.changed)
            for name, value in self.modules[part].state_dict().items()
            if f"{part}.{name}" not in trained
        }
        for part, module in self.reference.items():
            state |= {f"reference.{part}.{name}": value.detach() for name, value in module.state_dict().items()}
        return state | {f"slow.{name}": value for name, value in self.slow.items()}

    def load_frozen_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore `frozen_state`; reference and slow copy are left out where none is kept (a run that only samples).

        Raises UserError for tensors that this stage has no place for."""
        groups: dict[tuple[str, str], dict[str, Tensor]] = {}
        for key, value in tensors.items():
            kind, part, name = key.split(".", 2)
            groups.setdefault((kind, part), {})[name] = value
        for (kind, part), state in groups.items():
            if kind == "slow":
                for name in (name for name in state if f"{part}.{name}" in self.slow):
                    self.slow[f"{part}.{name}"].copy_(state[name])
                continue
            if kind == "reference" and not self.reference:
                continue
            modules: Mapping[str, nn.Module] = self.modules if kind == "model" else self.reference
            if part not in modules:
                raise UserError(f"the checkpoint holds {kind} weights of '{part}', which this stage does not have")
            unknown = modules[part].load_state_dict(state, strict=False).unexpected_keys
            if unknown:
                raise UserError(f"the checkpoint's {kind} '{part}' does not fit this model: unknown '{unknown[0]}'")
            if kind == "model":
                self.changed.add(part)

    def _end_stage(self) -> None:
        if self.choice is not None:
            if self.is_lora:
                for part in self.choice.parts:
                    lora.merge(self.modules[part])
            self.changed |= set(self.choice.parts)
        for parameter, dtype in self.dtypes.items():
            parameter.data = parameter.data.to(dtype)
        self.reference, self.slow, self.dtypes, self.choice, self.peft_configs = {}, {}, {}, None, {}
        for module in self.modules.values():
            module.eval().requires_grad_(False)

    def _to_float32(self, parameter: nn.Parameter) -> None:
        """The dtype a weight came in is its own again after the stage."""
        if parameter.dtype != torch.float32:
            self.dtypes[parameter] = parameter.dtype
            parameter.data = parameter.data.float()


def _match_dtypes(reference: nn.Module, model: nn.Module) -> None:
    """Give every weight of `reference`, a copy of `model`, the dtype that it has there, linear layers left out.

    A model in bfloat16 is trained with float32 weights under autocast, where an embedding or a norm of float32 makes what
    follows float32. With such weights in bfloat16 the reference would round where the model does not, and a KL term would start
    above 0. Weights of linear layers, nearly all there are, autocast narrows anyway.
    """
    for own, other in zip(reference.modules(), model.modules(), strict=True):
        if not isinstance(own, nn.Linear):
            for mine, theirs in zip(own.parameters(recurse=False), other.parameters(recurse=False), strict=True):
                mine.data = mine.data.to(theirs.dtype)
