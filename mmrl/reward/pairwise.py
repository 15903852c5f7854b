"""Rewards that compare two samples at a time: the reward of a sample is its win rate in its group (Pref-GRPO).

An author writes `compare`; which pairs are compared, in which order, ties, failures, budget and cache are written here once.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field, PrivateAttr

from mmrl.reward.base import Failed, Graded, Reward, Scope, staying, worded
from mmrl.reward.scored import listed, number_of
from mmrl.rollout import Sample
from mmrl.seeding import permutation

Verdict = float | Failed | None
"""How likely the first sample is the better one: 1, 0, or 0.5 for a tie; None or Failed: no verdict."""


class Known(NamedTuple):
    """A verdict that is kept, and who gave it."""

    verdict: float
    who: str


class PairwiseReward(Reward):
    """The share of its comparisons that a sample wins, ties counting a half.

    A pair without a verdict, in both orders where both are asked for, is left out; with `unreadable: half` an answer that says no
    verdict makes it a tie, as in the original Pref-GRPO, but a comparison that failed never does. A sample without any verdict has
    failed. Source: Pref-GRPO (arXiv 2508.20751).
    """

    scope: ClassVar[Scope] = "pairwise"
    range = (0.0, 1.0)

    orders: Literal["both", "one"] = "both"
    """Compare every pair in both orders and average, so that a liking for the first or the second place cancels; `one`: the earlier
    sample first, half the comparisons."""
    max_pairs: int | None = Field(default=None, ge=1)
    """Most pairs of a group; default: all. Every sample then appears equally often, and every two are linked through others."""
    unreadable: Literal["drop", "half"] = "drop"
    """A pair without a verdict is left out, or an answer without one is a tie."""
    cache: str | None = None
    """Folder in which verdicts are kept between runs; in memory they always are."""

    _kept: dict[str, Known] = PrivateAttr(default_factory=dict)

    @abstractmethod
    def compare(self, pairs: Sequence[tuple[Sample, Sample]]) -> Sequence[Verdict]:
        """One verdict per pair, in order, on what is shown first and second. Whatever is raised makes the pairs fail: they are
        then compared one by one, to find those that do."""

    def score(self, samples: Sequence[Sample]) -> list[Any]:
        """Win rates of the samples of one group. Raises ValueError for one sample, and for a budget that cannot link a group."""
        if len(samples) < 2:
            raise ValueError("a win rate needs two samples or more")
        chosen = pairs_of(len(samples), self.max_pairs, samples[0].prompt.id)
        shown = [(i, j) for i, j in chosen] + ([(j, i) for i, j in chosen] if self.orders == "both" else [])
        verdicts = dict(zip(shown, self.verdicts([(samples[i], samples[j]) for i, j in shown]), strict=True))
        wins, games = np.zeros(len(samples)), np.zeros(len(samples))
        reasons: dict[int, str] = {}
        for i, j in chosen:
            found = [verdicts[i, j]]
            if self.orders == "both":
                other = verdicts[j, i]
                found.append(1 - other if isinstance(other, float) else other)
            own = [one for one in found if isinstance(one, float)]
            if len(own) < len(found):  # of one order alone, a liking for a place would not cancel
                failed = next((one for one in found if isinstance(one, Failed)), None)
                why = "no verdict" if failed is None else failed.reason
                reasons |= {i: why, j: why}
                if self.unreadable == "drop" or failed is not None:
                    continue
                own = [0.5]
            share = float(np.mean(own))
            wins[[i, j]] += share, 1 - share
            games[[i, j]] += 1
        complete = games.max(initial=0)
        return [
            Failed(f"none of its comparisons has a verdict ({reasons.get(row, 'no verdict')})")
            if not games[row]
            else Graded(wins[row] / games[row], "compared" if games[row] == complete else "partly compared")
            for row in range(len(samples))
        ]

    def who(self) -> str | None:
        """Who gives the verdicts, where another may answer for the same options: kept verdicts of another are asked for anew. None:
        not known before the first verdict of this process."""
        return ""

    def verdicts(self, pairs: Sequence[tuple[Sample, Sample]]) -> list[Verdict]:
        """Kept verdicts of who answers now, and `compare` for the others."""
        keys = [self._key(first, second) for first, second in pairs]
        kept = [self._known(key) for key in keys]
        if self.who() is None and any(kept):
            self.compared([next(pair for pair, one in zip(pairs, kept, strict=True) if one)])
        who = self.who()
        found: list[Verdict] = [one.verdict if one and one.who == who else None for one in kept]
        missing = [at for at, value in enumerate(found) if value is None]
        for at, value in zip(missing, self.compared([pairs[at] for at in missing]), strict=True):
            found[at] = value
            self._keep(keys[at], value)
        return found

    def compared(self, pairs: Sequence[tuple[Sample, Sample]]) -> list[Verdict]:
        """Verdicts of `compare`; where it raises, pairs are compared one by one, so that only those fail that must."""
        if not pairs:
            return []
        try:
            with staying():
                told = listed(self.compare(pairs))
            if not isinstance(told, list):
                raise TypeError(f"expected a list with one verdict per pair, got a {type(told).__name__}")
            found = [checked(value) for value in told]
            if len(found) != len(pairs):
                raise ValueError(f"{len(found)} verdicts for {len(pairs)} pairs")
            return found
        except Exception as error:
            if len(pairs) == 1:
                return [Failed(f"compare raised {worded(error)}")]
            return [self.compared([pair])[0] for pair in pairs]

    def _key(self, first: Sample, second: Sample) -> str:
        """Who judges, by which options, what, in which order."""
        kind = type(self)
        who = f"{kind.__module__}.{kind.__qualname__}/{self.revision}/{self.model_dump_json(exclude={'cache', 'max_pairs'})}"
        digest = hashlib.sha256(who.encode())
        for sample in (first, second):
            digest.update(contents(sample))
        return digest.hexdigest()

    def _known(self, key: str) -> Known | None:
        if key not in self._kept and self.cache is not None and self._file(key).is_file():
            try:
                said = json.loads(self._file(key).read_text(encoding="utf-8"))
                verdict, who = checked(said["verdict"]), str(said["who"])
            except (ValueError, TypeError, KeyError):
                return None  # a file that broke off is written anew
            if isinstance(verdict, float):
                self._kept[key] = Known(verdict, who)
        return self._kept.get(key)

    def _keep(self, key: str, value: Verdict) -> None:
        who = self.who()
        if not isinstance(value, float) or who is None:
            return
        self._kept[key] = Known(value, who)
        if self.cache is not None:
            self._file(key).parent.mkdir(parents=True, exist_ok=True)
            part = self._file(key).with_suffix(f".{os.getpid()}.part")
            part.write_text(json.dumps({"verdict": value, "who": who}), encoding="utf-8")
            os.replace(part, self._file(key))  # another process never reads half a file

    def _file(self, key: str) -> Path:
        return Path(str(self.cache)) / key[:2] / f"{key}.json"


def checked(value: Any) -> Verdict:
    """A verdict as it may be: a number from 0 to 1, `Failed` or None. Raises ValueError for anything else."""
    if value is None or isinstance(value, Failed):
        return value
    number = number_of(value)
    if number is None or not 0 <= number <= 1:
        raise ValueError(f"a verdict is a number from 0 to 1, got {value!r}")
    return number


def contents(sample: Sample) -> bytes:
    """A digest of everything that a judge sees of a sample, and of what its prompt asks for; of a file, of what is in it."""
    told = [sample.prompt.text, sample.prompt.target, sample.text, len(sample.prompt.media)]
    digest = hashlib.sha256(json.dumps(told, default=_told, sort_keys=True).encode())
    for item in (*sample.prompt.media, *sample.images, *(() if sample.video is None else (sample.video,))):
        if isinstance(item, np.ndarray):
            digest.update(f"{item.dtype} {item.shape}".encode() + np.ascontiguousarray(item).tobytes())
        else:
            whole = Path(item).read_bytes() if isinstance(item, str | Path) and Path(item).is_file() else b""
            digest.update(f"{item} {len(whole)}".encode() + whole)
    return digest.digest()


def _told(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else repr(value)


def pairs_of(count: int, most: int | None, seed: int | str) -> list[tuple[int, int]]:
    """Pairs (i < j) of `count` samples: all, or of a random ring every sample with its next k on either side, k as large as `most` allows.

    So every sample has 2k opponents and no part of a group stands alone. Raises ValueError for fewer pairs than samples.
    """
    if most is None or most >= count * (count - 1) // 2:
        return [(i, j) for i in range(count) for j in range(i + 1, count)]
    reach = most // count
    if reach < 1:
        raise ValueError(f"max_pairs {most} cannot link a group of {count}; use {count} or more")
    ring = permutation(count, "pairs", seed).tolist()
    found = {tuple(sorted((ring[k], ring[(k + d) % count]))) for k in range(count) for d in range(1, reach + 1)}
    return sorted(found)
