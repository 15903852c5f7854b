"""What the encoders say about prompts: encoded once per distinct ask, kept in memory, and on disk where wanted, while they
are frozen."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from mmrl.image import read_image

Tensors = dict[str, Tensor]
CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class Picture:
    """A picture beside a prompt, known by the digest of its contents; `array (H, W, 3)` uint8."""

    digest: str
    array: np.ndarray = field(compare=False, repr=False)

    @classmethod
    def of(cls, item: Any) -> Picture:
        """From a uint8 array or the path of a file. Raises UserError for what is no picture."""
        array = item if isinstance(item, np.ndarray) else read_image(Path(item))
        contents = str(array.shape).encode() + np.ascontiguousarray(array).tobytes()
        return cls(hashlib.sha256(contents).hexdigest()[:32], array)


class Size(NamedTuple):
    """Pixels of a picture, or of the frames of a video; `frames` is 1 for a picture."""

    height: int
    width: int
    frames: int = 1


class Ask(NamedTuple):
    """What a sample was asked for: the text, and where the model takes pictures these and the size of what is made."""

    text: str
    media: tuple[Picture, ...] = ()
    size: Size | None = None
    bare: bool = False
    """The text stands for none (it is what guidance compares with), so no instruction that a model has around its prompts."""


@dataclass
class Conditioning:
    """Conditioning tensors of U distinct asks: `tensors[name] (U, ...)`, `index[ask]` is the row of an ask."""

    index: dict[Ask, int]
    tensors: Tensors

    def rows(self, asks: Sequence[Ask], device: torch.device) -> Tensors:
        """The tensors of `asks`, one row each, with gradient where the encoders have one."""
        at = torch.tensor([self.index[ask] for ask in asks], device=device)
        return {name: value[at] for name, value in self.tensors.items()}


class ConditioningCache:
    """Distinct ask -> its tensors, the least recently used leaving memory first above `max_bytes`.

    With a `folder` they are also kept there (safetensors, one file per ask), under a name made from the ask and from
    `identity`: everything else that they depend on (which encoders, which lengths).
    """

    def __init__(
        self,
        encode: Callable[[list[Ask]], Tensors],
        max_bytes: int = CACHE_BYTES,
        folder: Path | None = None,
        identity: str = "",
    ) -> None:
        self.encode = encode
        self.max_bytes = max_bytes
        self.folder = folder
        self.identity = identity
        self.kept: OrderedDict[Ask, Tensors] = OrderedDict()
        self.bytes = 0

    def clear(self) -> None:
        self.kept.clear()
        self.bytes = 0

    @torch.no_grad()
    def frozen(self, asks: Iterable[Ask], device: torch.device) -> Conditioning:
        """Conditioning without gradient, encoding only what is not kept."""
        distinct = list(dict.fromkeys(asks))
        found = {ask: self.kept[ask] for ask in distinct if ask in self.kept}
        for ask in (ask for ask in distinct if ask not in found):
            found[ask] = self._read(ask, device) or self._encoded(ask)
            self._keep(ask, found[ask])
        for ask in distinct:
            if ask in self.kept:
                self.kept.move_to_end(ask)
        names = next(iter(found.values())).keys()
        tensors = {name: stacked([found[ask][name] for ask in distinct]) for name in names}
        return Conditioning({ask: i for i, ask in enumerate(distinct)}, tensors)

    def fresh(self, asks: Iterable[Ask]) -> Conditioning:
        """Conditioning from the encoders as they are now, with gradient where it is enabled; nothing is kept."""
        distinct = list(dict.fromkeys(asks))
        return Conditioning({ask: i for i, ask in enumerate(distinct)}, self.encode(distinct))

    def _encoded(self, ask: Ask) -> Tensors:
        # one at a time: a batch would round differently, and what is missing depends on the past
        found = {name: value[0].clone() for name, value in self.encode([ask]).items()}
        if self.folder is not None:
            from safetensors.torch import save_file

            self.folder.mkdir(parents=True, exist_ok=True)
            path = self._file(ask)
            part = path.with_suffix(f".{os.getpid()}.part")
            save_file({name: value.contiguous().cpu() for name, value in found.items()}, part)
            os.replace(part, path)
        return found

    def _read(self, ask: Ask, device: torch.device) -> Tensors | None:
        if self.folder is None or not self._file(ask).exists():
            return None
        from safetensors.torch import load_file

        return {name: value.to(device) for name, value in load_file(self._file(ask)).items()}

    def _file(self, ask: Ask) -> Path:
        assert self.folder is not None
        digests = (one.digest for one in ask.media)
        contents = (self.identity, ask.text, str(tuple(ask.size or ())), str(ask.bare), *digests)
        return self.folder / f"{hashlib.sha256(chr(0).join(contents).encode()).hexdigest()[:40]}.safetensors"

    def _keep(self, ask: Ask, tensors: Tensors) -> None:
        self.kept[ask] = tensors
        self.bytes += _size(tensors)
        while self.bytes > self.max_bytes and len(self.kept) > 1:
            self.bytes -= _size(self.kept.popitem(last=False)[1])


def stacked(values: Sequence[Tensor]) -> Tensor:
    """Tensors of one rank under each other, the shorter ones (in their first dimension) padded behind with zeros."""
    longest = max(len(value) if value.dim() else 0 for value in values)
    return torch.stack([_padded(value, longest) for value in values])


def by_kind(keys: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    """`run(rows)` once for each distinct entry of `keys (B, ...)`, with the rows `(n,)` int64 that have it; its results `(n, ...)` in the
    order of the rows. For networks that are told one thing (shapes of sources) about a whole batch."""
    _, kind = keys.unique(dim=0, return_inverse=True)
    rows = [(kind == one).nonzero()[:, 0] for one in range(int(kind.max()) + 1)]
    return torch.cat([run(some) for some in rows])[torch.cat(rows).argsort()]


def _padded(value: Tensor, length: int) -> Tensor:
    if not value.dim() or len(value) == length:
        return value
    return pad(value, (0, 0) * (value.dim() - 1) + (0, length - len(value)))


def _size(tensors: Tensors) -> int:
    return sum(value.numel() * value.element_size() for value in tensors.values())
