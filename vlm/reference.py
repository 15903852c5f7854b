"""The frozen reference of a model whose weights are trained in full: as exact as the model that it is compared with."""

from __future__ import annotations

from torch import nn


def match_dtypes(reference: nn.Module, model: nn.Module) -> None:
    """Give every weight of `reference`, a copy of `model`, the dtype that it has there, linear layers left out.

    A model in bfloat16 is trained with float32 weights under autocast, where an embedding or a norm of float32 makes what
    follows float32. With such weights in bfloat16 the reference would round where the model does not, and a KL term would start
    above 0. Weights of linear layers, nearly all there are, autocast narrows anyway.
    """
    for own, other in zip(reference.modules(), model.modules(), strict=True):
        if not isinstance(own, nn.Linear):
            for mine, theirs in zip(own.parameters(recurse=False), other.parameters(recurse=False), strict=True):
                mine.data = mine.data.to(theirs.dtype)
