"""Which weights of an adapter's modules a stage trains, what the reference is, and what a checkpoint must hold."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from mmrl.errors import UserError
from mmrl.generative import lora
from mmrl.generative.adapters.base import Adapter
from mmrl.generative.train import TrainSpec


class Weights:
    """The stage's trainable and frozen weights. Names are `part.parameter`, part being the pipeline's attribute."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.spec: TrainSpec | None = None
        self.parts: tuple[str, ...] = ()
        self.reference: dict[str, nn.Module] = {}
        self.has_reference = False
        self.dtypes: dict[nn.Parameter, torch.dtype] = {}
        self.changed: set[str] = set()
        """Parts whose weights are no longer those that were loaded, without counting what the stage trains."""

    def prepare(self, spec: TrainSpec, reference: bool) -> None:
        """Start a stage: merge an earlier adapter, freeze everything, then free (or add) what `spec` trains."""
        parts, chosen = self.select(spec)
        self._end_stage()
        if spec.mode == "lora":
            lora.add(self.adapter.network, spec.rank, spec.alpha, self._targets(spec), spec.seed)
        else:
            for name in parts:
                self._to_float32(self.adapter.modules[name])
                for key, parameter in self.adapter.modules[name].named_parameters():
                    parameter.requires_grad_(f"{name}.{key}" in chosen)
        if reference and spec.mode == "full":
            self.reference = {name: copy.deepcopy(self.adapter.modules[name]).requires_grad_(False) for name in parts}
        self.spec, self.parts, self.has_reference = spec, parts, reference or spec.mode == "lora"
        self._checkpointing(spec.gradient_checkpointing)

    def select(self, spec: TrainSpec) -> tuple[tuple[str, ...], set[str]]:
        """Parts that `spec` trains, and the full names of their parameters (none for a LoRA); changes nothing.

        Raises UserError for parts, patterns and LoRA targets that the model does not have."""
        parts = self._parts(spec)
        if spec.mode == "full":
            return parts, self._chosen(spec, parts)
        lora.check_targets(self.adapter.network, self._targets(spec))
        return parts, set()

    @property
    def is_lora(self) -> bool:
        return self.spec is not None and self.spec.mode == "lora"

    @property
    def trains_encoders(self) -> bool:
        return any(name != self.adapter.network_name for name in self.parts)

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype of the forward pass when float32 weights are trained of a model loaded in a lower one."""
        full = self.spec is not None and self.spec.mode == "full"
        return self.adapter.dtype if full and self.adapter.dtype != torch.float32 else None

    def trainable(self) -> dict[str, nn.Parameter]:
        modules = self.adapter.modules
        return {
            f"{part}.{name}": parameter
            for part in self.parts
            for name, parameter in modules[part].named_parameters()
            if parameter.requires_grad
        }

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """The policy as it was when the stage started. Raises UserError when none was kept."""
        if not self.has_reference:
            raise UserError("no reference was kept for this stage: prepare(train, reference=True) comes first")
        if self.is_lora:
            with lora.disabled(self.adapter.network):
                yield
        else:
            with self.adapter.using(self.reference):
                yield

    def frozen_state(self) -> dict[str, Tensor]:
        """Weights that differ from the loaded model without being trained, and the frozen reference."""
        trained = set(self.trainable())
        state = {
            f"model.{part}.{name}": value.detach()
            for part in sorted(self.changed)
            for name, value in self.adapter.modules[part].state_dict().items()
            if f"{part}.{name}" not in trained
        }
        for part, module in self.reference.items():
            state |= {f"reference.{part}.{name}": value.detach() for name, value in module.state_dict().items()}
        return state

    def load_frozen_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore `frozen_state`; the reference is left out where none is kept (a finished run that only samples).

        Raises UserError for tensors that this stage has no place for."""
        groups: dict[tuple[str, str], dict[str, Tensor]] = {}
        for key, value in tensors.items():
            kind, part, name = key.split(".", 2)
            groups.setdefault((kind, part), {})[name] = value
        for (kind, part), state in groups.items():
            if kind == "reference" and not self.reference:
                continue
            modules: Mapping[str, nn.Module] = self.adapter.modules if kind == "model" else self.reference
            if part not in modules:
                raise UserError(f"the checkpoint holds {kind} weights of '{part}', which this stage does not have")
            unknown = modules[part].load_state_dict(state, strict=False).unexpected_keys
            if unknown:
                raise UserError(f"the checkpoint's {kind} '{part}' does not fit this model: unknown '{unknown[0]}'")
            if kind == "model":
                self.changed.add(part)

    def merged(self) -> dict[str, Any]:
        """Modules to put in place for saving: a copy of the network with its adapter merged, if there is one."""
        return {self.adapter.network_name: lora.merged_copy(self.adapter.network)} if self.is_lora else {}

    def _parts(self, spec: TrainSpec) -> tuple[str, ...]:
        named = spec.parts or (self.adapter.network_name,)
        self.adapter.check_parts(named)
        return tuple(part for name in named for part in (self.adapter.encoders if name == "text_encoders" else (name,)))

    def _targets(self, spec: TrainSpec) -> tuple[str, ...]:
        return spec.targets or self.adapter.lora_targets

    def _chosen(self, spec: TrainSpec, parts: tuple[str, ...]) -> set[str]:
        """Full names of what `spec.parameters` selects. Raises UserError for a pattern that fits nothing."""
        base = {part: module.named_parameters() for part, module in self.adapter.modules.items() if part in parts}
        names = [(part, name.replace(".base_layer.", ".")) for part, found in base.items() for name, _ in found]
        names = [(part, name) for part, name in names if "lora_" not in name]
        if spec.parameters is None:
            return {f"{part}.{name}" for part, name in names}
        chosen: set[str] = set()
        for pattern in spec.parameters:
            fits = {f"{part}.{name}" for part, name in names if fnmatchcase(name, pattern)}
            if not fits:
                near = difflib.get_close_matches(pattern, [name for _, name in names], n=3, cutoff=0.3)
                raise UserError(f"train.parameters: '{pattern}' fits no parameter of {', '.join(parts)}; near: {near}")
            chosen |= fits
        return chosen

    def _end_stage(self) -> None:
        if self.is_lora:
            lora.merge(self.adapter.network)
        self.changed |= set(self.parts)
        for parameter, dtype in self.dtypes.items():
            parameter.data = parameter.data.to(dtype)
        self.reference, self.dtypes, self.parts, self.spec = {}, {}, (), None
        for module in self.adapter.modules.values():
            module.eval().requires_grad_(False)

    def _to_float32(self, module: nn.Module) -> None:
        """Weights that are trained in full are float32; the dtype they came in is theirs again after the stage."""
        for parameter in module.parameters():
            if parameter.dtype != torch.float32:
                self.dtypes[parameter] = parameter.dtype
                parameter.data = parameter.data.float()

    def _checkpointing(self, on: bool) -> None:
        network: Any = self.adapter.network
        if on:
            network.enable_gradient_checkpointing()
        elif network.is_gradient_checkpointing:
            network.disable_gradient_checkpointing()
