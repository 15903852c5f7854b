"""Gradient checkpointing: a layer keeps its input alone, and is computed again in the backward pass.

transformers does so for models in training mode without a key-value cache. Models stay in evaluation mode here, where nothing
is dropped at random, and answers are scored behind a cache; so the layers that transformers marks are run by this module.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from mmrl.errors import UserError

recomputed: Callable[..., Any] = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
"""`recomputed(function, *args, **kwargs)`: what the function saves for its backward pass is computed anew there."""


def set_checkpointing(model: Any, on: bool) -> None:
    """Mark every layer of a transformers model. Raises UserError when it has no such layers."""
    layers = _layers(model)
    if on and not layers:
        raise UserError(
            f"train.gradient_checkpointing: {type(model).__name__} has no layers that transformers can compute again; leave it out"
        )
    for layer in layers:
        layer.gradient_checkpointing = on


@contextmanager
def checkpointed(module: Any) -> Iterator[None]:
    """Inside, the marked layers of `module` that run with gradient are computed again in the backward pass, which may come
    later. Raises UserError for a layer that keeps anything but keys and values in a cache."""
    marked = [layer for layer in _layers(module) if layer.gradient_checkpointing] if torch.is_grad_enabled() else []
    for layer in marked:
        layer.forward = partial(_forward, layer.forward)
    try:
        yield
    finally:
        for layer in marked:
            del layer.forward


def _layers(module: Any) -> list[Any]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]


def _forward(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    from transformers.cache_utils import Cache

    caches = {id(value): value for value in (*args, *kwargs.values()) if isinstance(value, Cache)}
    before = {key: _Before(cache) for key, cache in caches.items()}
    done = False

    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal done
        if done:  # once more, in the backward pass: with the caches as they were, and without a trace in them
            args = tuple(before[id(x)].cache() if id(x) in before else x for x in args)
            kwargs = {name: before[id(x)].cache() if id(x) in before else x for name, x in kwargs.items()}
        done = True
        return forward(*args, **kwargs)

    out = recomputed(run, *args, **kwargs)
    for one in before.values():
        one.forget_unchanged()
    return out


class _Before:
    """A cache before a layer added its keys and values to it. Updates replace tensors and never write into them."""

    def __init__(self, cache: Any) -> None:
        from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

        self.now = cache
        for layer in cache.layers:
            if not isinstance(layer, DynamicLayer) or isinstance(layer, LinearAttentionCacheLayerMixin):
                raise UserError(
                    f"train.gradient_checkpointing cannot be used with a model whose cache holds a {type(layer).__name__}"
                )
        self.layers: list[Any] = [copy.copy(layer) for layer in cache.layers]

    def forget_unchanged(self) -> None:
        """Keep no tensors of other layers alive."""
        for number, (then, now) in enumerate(zip(self.layers, self.now.layers, strict=False)):
            if then.keys is now.keys:
                self.layers[number] = None

    def cache(self) -> Any:
        found = copy.copy(self.now)
        pairs = zip(self.layers, self.now.layers, strict=False)
        found.layers = [now if then is None else copy.copy(then) for then, now in pairs]
        return found
