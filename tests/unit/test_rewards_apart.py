"""What scores elsewhere has to be the same for every process of a run."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from toy_policy import FakeGroup, SharedMail

from mmrl import run
from mmrl.errors import RunError


@pytest.mark.parametrize("names", [("judge-a", "judge-a"), ("judge-a", "judge-b")])
def test_processes_that_meet_different_judges_stop_together(
    names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(run, "_record", lambda *given: written.append("rewards.json"))
    monkeypatch.setattr(
        run,
        "_rewards",
        lambda own: {"stages.rl.rewards": {"taste": SimpleNamespace(reward=SimpleNamespace(elsewhere=lambda: own))}},
    )
    mail = SharedMail(2)
    errors: list[str | None] = [None, None]

    def process(rank: int, resolved: Any) -> None:
        try:
            run.record_rewards(resolved, None, FakeGroup(rank, mail), resume=False)  # type: ignore[arg-type]
        except RunError as error:
            errors[rank] = str(error)

    threads = [threading.Thread(target=process, args=(rank, names[rank])) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if names[0] == names[1]:
        assert errors == [None, None] and written == ["rewards.json"]
    else:
        assert all("stages.rl.rewards.taste" in str(one) and "process 1 by 'judge-b'" in str(one) for one in errors)
        assert not written
