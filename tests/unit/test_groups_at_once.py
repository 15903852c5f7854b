"""Rewards that compare may be asked about several groups at a time; what they say belongs to the right samples either way."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import PrivateAttr

from mmrl.reward import Reward, RewardSet
from mmrl.rollout import FAILED, OK, Prompt, Sample


class Ranks(Reward):
    """Groupwise: how far a text's length is above the shortest of the group; waits until `together` groups are being scored."""

    scope = "groupwise"
    together: int = 1
    _door: Any = PrivateAttr(default=None)
    _inside: int = PrivateAttr(default=0)
    _most: int = PrivateAttr(default=0)

    def at_once(self) -> int:
        return self.together

    def score(self, samples: Sequence[Sample]) -> list[float]:
        self._inside += 1
        self._most = max(self._most, self._inside)
        if self.together > 1:
            self._door = self._door or threading.Barrier(self.together)
            self._door.wait(timeout=20)
        self._inside -= 1
        lengths = [len(str(sample.text)) for sample in samples]
        if max(lengths) > 90:
            raise RuntimeError("too long")
        return [float(one - min(lengths)) for one in lengths]


@pytest.mark.parametrize("together", [1, 3])
def test_groups_of_any_order_keep_their_scores(together: int) -> None:
    reward = Ranks(together=together)
    reward._door = threading.Barrier(together)
    texts, group = ["a", "bbbb", "cc", "d" * 99, "ee", "fff"], [2, 0, 2, 1, 0, 2]
    scores = RewardSet({"r": (reward, 1.0)}).score([Sample(Prompt("p", "x"), text) for text in texts], group)
    assert [(int(s), v) for s, v in zip(scores.status[:, 0], scores.values[:, 0], strict=True) if s == OK] == [
        (OK, 0.0), (OK, 2.0), (OK, 1.0), (OK, 0.0), (OK, 2.0)]  # fmt: skip
    assert scores.status[3, 0] == FAILED and "too long" in scores.messages[0] and len(scores.messages) == 1
    assert (reward._most == 1) is (together == 1)
