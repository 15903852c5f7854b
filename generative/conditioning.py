"""What the text encoders say about prompts: encoded once per distinct text, kept while the encoders are frozen."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
CACHE_BYTES = 1 << 30


@dataclass
class Conditioning:
    """Conditioning tensors of U distinct texts: `tensors[name] (U, ...)`, `index[text]` is the row of a text."""

    index: dict[str, int]
    tensors: Tensors

    def rows(self, texts: Sequence[str], device: torch.device) -> Tensors:
        """The tensors of `texts`, one row each, with gradient where the encoders have one."""
        at = torch.tensor([self.index[text] for text in texts], device=device)
        return {name: value[at] for name, value in self.tensors.items()}


class ConditioningCache:
    """Distinct text -> its tensors, the least recently used leaving first above `max_bytes`."""

    def __init__(self, encode: Callable[[list[str]], Tensors], max_bytes: int = CACHE_BYTES) -> None:
        self.encode = encode
        self.max_bytes = max_bytes
        self.kept: OrderedDict[str, Tensors] = OrderedDict()
        self.bytes = 0

    def clear(self) -> None:
        self.kept.clear()
        self.bytes = 0

    @torch.no_grad()
    def frozen(self, texts: Iterable[str]) -> Conditioning:
        """Conditioning without gradient, encoding only what is not kept."""
        distinct = list(dict.fromkeys(texts))
        found = {text: self.kept[text] for text in distinct if text in self.kept}
        missing = [text for text in distinct if text not in found]
        for text in missing:  # one at a time: a batch would round differently, and what is missing depends on the past
            found[text] = {name: value[0].clone() for name, value in self.encode([text]).items()}
            self._keep(text, found[text])
        for text in distinct:
            if text in self.kept:
                self.kept.move_to_end(text)
        names = next(iter(found.values())).keys()
        tensors = {name: torch.stack([found[text][name] for text in distinct]) for name in names}
        return Conditioning({text: i for i, text in enumerate(distinct)}, tensors)

    def fresh(self, texts: Iterable[str]) -> Conditioning:
        """Conditioning from the encoders as they are now, with gradient where it is enabled; nothing is kept."""
        distinct = list(dict.fromkeys(texts))
        return Conditioning({text: i for i, text in enumerate(distinct)}, self.encode(distinct))

    def _keep(self, text: str, tensors: Tensors) -> None:
        self.kept[text] = tensors
        self.bytes += _size(tensors)
        while self.bytes > self.max_bytes and len(self.kept) > 1:
            self.bytes -= _size(self.kept.popitem(last=False)[1])


def _size(tensors: Tensors) -> int:
    return sum(value.numel() * value.element_size() for value in tensors.values())
