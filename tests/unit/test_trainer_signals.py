"""What a run does when it is asked to stop."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from mmrl.trainer import Interrupted, Trainer


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_says_what_the_second_does(number: signal.Signals) -> None:
    said: list[str] = []
    trainer: Any = Trainer.__new__(Trainer)
    trainer.stop, trainer.tracking = False, SimpleNamespace(say=said.append)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="stopped at once, without a checkpoint"), trainer._stop_on_signal():
        signal.raise_signal(number)
        assert trainer.stop and len(said) == 1 and "a second signal stops at once, without a checkpoint" in said[0]
        signal.raise_signal(number)
    assert signal.getsignal(number) is before
