"""Fixtures of several files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.judge_server import JudgeServer, Serve


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts judges that answer by a function of the request; see `JudgeServer`."""
    servers: list[JudgeServer] = []

    def start(answer: Callable[[dict[str, Any]], Any]) -> JudgeServer:
        servers.append(JudgeServer(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
