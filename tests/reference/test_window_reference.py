"""Windows against the state machine."""

from __future__ import annotations

from typing import Any

import naive_core
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.objective.window import WindowSteps


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 5),
    end=st.integers(5, 20),
    schedule=st.sampled_from(["progressive", "decay", "exp_decay"]),
    every=st.integers(1, 6),
    stride=st.integers(1, 6),
    roll_back=st.booleans(),
)
def test_windows_equal_the_state_machine(
    size: int, end: int, schedule: Any, every: int, stride: int, roll_back: bool
) -> None:
    selector = WindowSteps(
        size=size, schedule=schedule, every=every, stride=stride, roll_back=roll_back, range=(0, end)
    )
    walked = naive_core.window_walk(90, size, end, schedule, every, stride, roll_back)
    ours = [selector.before_rollout(end + 2, i, 0).nonzero()[:, 0].tolist() for i in range(90)]
    assert ours == walked
