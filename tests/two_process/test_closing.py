"""A closed group leaves no thread behind: one that is alive while the interpreter ends may abort the process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = """
import sys
from pathlib import Path

from mmrl.distributed import Group

group = Group("cpu")
import torch.distributed.nn.functional  # as libraries do, long after the group began

group.barrier()
names = lambda: {file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")}
before = names()
group.close()
sys.exit(0 if any("gloo" in name for name in before) and not any("gloo" in name for name in names()) else 1)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are read from /proc")
def test_no_thread_of_the_group_outlives_it() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    assert [worker.wait(120) for worker in workers] == [0, 0]
