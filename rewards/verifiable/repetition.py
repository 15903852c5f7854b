"""Penalties for saying the same again: n-grams of words, items of a JSON list, whole lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Literal

from pydantic import Field

from mmrl.reward import Reward
from mmrl.rewards.verifiable.parse.boxes import json_values
from mmrl.rewards.verifiable.parse.region import clean
from mmrl.rollout import Sample


def repeated_share(things: Sequence[object]) -> float:
    """1 - different / all, in [0, 1); 0 for nothing."""
    return 1 - len(set(things)) / len(things) if things else 0.0


def repeated_ngrams(text: str, n: int = 6) -> float:
    """Share of the n-grams of words that are repeats, case folded; 0 for a text with fewer than n words."""
    words = text.casefold().split()
    return repeated_share([tuple(words[at : at + n]) for at in range(len(words) - n + 1)])


def repeated_items(text: str) -> float:
    """Share of repeats among the items of the longest JSON list in the text; 0 without a list."""
    lists = [value for value in json_values(text) if isinstance(value, list)]
    longest = max(lists, key=len, default=[])
    return repeated_share([json.dumps(item, sort_keys=True) for item in longest])


def longest_run(text: str, min_words: int = 7) -> int:
    """Length of the longest run of equal lines with at least `min_words` words; 0 if there is no such line."""
    runs = [(line, len(list(group))) for line, group in groupby(line.strip() for line in text.split("\n"))]
    return max((length for line, length in runs if len(line.split()) >= min_words), default=0)


class Repetition(Reward):
    """Minus the share of the text that repeats, reasoning included.

    words  -(share of repeated n-grams of words)
    items  -(share of repeated items of the longest JSON list)
    lines  -0.5 if `run` or more equal lines of at least `min_words` words follow each other
    """

    range = (-1.0, 0.0)
    needs = ("text",)
    licence = "Apache-2.0"
    mode: Literal["words", "items", "lines"] = "words"
    """What may not repeat: n-grams of words, items of a JSON list, or lines."""
    n: int = Field(default=6, ge=1)
    """`words`: words in an n-gram."""
    run: int = Field(default=4, ge=2)
    """`lines`: equal lines in a row from which on it costs."""
    min_words: int = Field(default=7, ge=1)
    """`lines`: shorter lines may repeat."""

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """One number per sample."""
        return [self._one(clean(sample.text or "")) for sample in samples]

    def _one(self, text: str) -> float:
        if self.mode == "words":
            return -repeated_ngrams(text, self.n)
        if self.mode == "items":
            return -repeated_items(text)
        return -0.5 if longest_run(text, self.min_words) >= self.run else 0.0
