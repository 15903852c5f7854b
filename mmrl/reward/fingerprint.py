"""Which model is behind a reward: hashes of what scores, and of what prepares its inputs."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from datetime import date
from decimal import Decimal
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import nn

from mmrl.reward.base import Reward

LIBRARIES = (
    "numpy",
    "pillow",
    "torch",
    "torchvision",
    "transformers",
    "tokenizers",
    "open_clip_torch",
    "decord",
    "av",
    "rapidocr",
)
DEPTH = 4


def fingerprint(reward: Reward) -> str:
    """SHA-256 over a reward's class, the file of its code, its options, and the weights that `setup` loaded, wherever it keeps them."""
    digest = hashlib.sha256("\n".join(_facts(reward)).encode())
    for name, value in _kept(reward):
        if isinstance(value, Reward):
            digest.update("\n".join([name, *_facts(value)]).encode())
        elif isinstance(value, nn.Module):
            for key, tensor in sorted(value.state_dict().items()):
                if isinstance(tensor, torch.Tensor):
                    digest.update(f"{name}.{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                    digest.update(_bytes(tensor))
    return digest.hexdigest()


def preprocessing(reward: Reward) -> str:
    """SHA-256 over the settings of processors and tokenizers that `setup` loaded, and the versions of the libraries that decode,
    resize and tokenize."""
    facts = [f"{library} {_version(library)}" for library in LIBRARIES]
    for name, value in _kept(reward):
        told = _settings(value)
        if told is not None:
            facts.append(f"{name} {type(value).__qualname__} {told}")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _facts(reward: Reward) -> list[str]:
    kind = type(reward)
    options = {name: _plain(getattr(reward, name)) for name in type(reward).model_fields}
    code = [kind, *(value for _, value in reward if callable(value) and not isinstance(value, BaseModel))]
    named = [
        _named(kind),
        reward.revision,
        reward.elsewhere(),
        json.dumps(options, sort_keys=True),
    ]
    return named + [hashlib.sha256(_source(one)).hexdigest() for one in code]


def _named(one: Any) -> str:
    """Module and name of a class or function; of one in a user's file without the hash of the file's place, which may move."""
    module = re.sub(r"^(mmrl_user_.*)_[0-9a-f]{8}$", r"\1", str(one.__module__))
    return f"{module}.{one.__qualname__}"


def _plain(value: Any) -> Any:
    """An option as JSON, the same in every process."""
    if isinstance(value, BaseModel):
        return {"class": type(value).__qualname__} | {
            name: _plain(getattr(value, name)) for name in type(value).model_fields
        }
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((_plain(one) for one in value), key=repr)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, bytes | PurePath | Enum | Decimal | date):
        return repr(value)
    return _named(value if isinstance(value, type) or inspect.isroutine(value) else type(value))


def _source(code: Any) -> bytes:
    """The file that a class or function was written in; nothing for one that was made elsewhere."""
    code = inspect.unwrap(code)
    if not isinstance(code, type) and not inspect.isroutine(code):  # an object that can be called
        code = type(code)
    try:
        return Path(inspect.getfile(code)).read_bytes()
    except (TypeError, OSError):
        return b""


def _kept(reward: Reward) -> Iterator[tuple[str, Any]]:
    """Everything that a reward keeps, by the way to it: itself left out, each thing once."""
    seen: set[int] = {id(reward)}
    private = reward.__pydantic_private__ or {}
    options = {name: value for name, value in reward if isinstance(value, Reward)}
    for name, value in sorted({**private, **options}.items()):
        yield from _inside(name, value, DEPTH, seen)


def _inside(name: str, value: Any, depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if value is None or isinstance(value, str | bytes | int | float | type) or depth == 0 or id(value) in seen:
        return
    seen.add(id(value))
    yield name, value
    inner: Mapping[str, Any] = {}
    if isinstance(value, Reward):
        inner = value.__pydantic_private__ or {}
    elif isinstance(value, Mapping):
        inner = {str(key): one for key, one in value.items()}
    elif isinstance(value, list | tuple):
        inner = {str(key): one for key, one in enumerate(value)}
    elif not isinstance(value, nn.Module) and _settings(value) is None:
        inner = getattr(value, "__dict__", {})
    for key, one in sorted(inner.items()):
        yield from _inside(f"{name}.{key}", one, depth - 1, seen)


def _settings(value: Any) -> str | None:
    """What a processor, a tokenizer or a transform says of itself, the same in every process; None for anything else."""
    if isinstance(value, nn.Module | Reward):
        return None
    backend = getattr(value, "backend_tokenizer", None)
    if backend is not None and hasattr(backend, "to_str"):
        return f"{backend.to_str()} {getattr(value, 'padding_side', '')} {getattr(value, 'model_max_length', '')}"
    parts = [getattr(value, name, None) for name in ("image_processor", "video_processor", "tokenizer")]
    told = [_settings(one) for one in parts if one is not None]
    if any(one is not None for one in told):
        return " ".join(one or "" for one in told)
    if hasattr(value, "to_json_string"):
        return str(value.to_json_string())
    if type(value).__module__.startswith("torchvision.transforms"):
        return repr(value)
    return None


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"


def _bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return np.asarray(flat).tobytes()
