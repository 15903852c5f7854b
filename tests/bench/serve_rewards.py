"""2,000 pictures scored by a reward server in a process of its own: directly, through a proxy, and through a proxy that spoils every
fifth request while the server is killed once and started again.

    python -m tests.bench.serve_rewards [--pictures 2000] [--batch 20] [--concurrency 4] [--side 16] [--encoding json multipart]

Prints a table per encoding. "Scored twice" counts pictures that one server process scored more than once, "by both" those that the killed
process had scored without telling the client, and the next one scored again; the client counts one answer per picture either way.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from mmrl.reward import RewardSet
from mmrl.rewards.remote.client import RemoteReward
from mmrl.rollout import OK
from tests.end_to_end.faulty_proxy import PATIENCE, FaultyProxy
from tests.end_to_end.reward_server import Server, samples

NEVER = 10**9
WAYS = {"direct": None, "proxy": NEVER, "faults": 5}


def measure(way: str, encoding: Any, options: argparse.Namespace) -> dict[str, Any]:
    """One load, and everything about it."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        server.start()
        server.wait()
        every, kills = WAYS[way], []

        def before(number: int) -> None:
            if way == "faults" and number == options.pictures // options.batch * 3 // 5 and not kills:
                kills.append(number)
                server.kill()
                server.start()

        proxy = None if every is None else FaultyProxy(("127.0.0.1", server.port), every, before)
        try:
            reward = RemoteReward(
                url=server.url if proxy is None else proxy.url,
                reward="bright",
                batch_size=options.batch,
                concurrency=options.concurrency,
                encoding=encoding,
                read_timeout=PATIENCE,
                backoff=0.05,
                deadline=300,
            )
            reward.setup(torch.device("cpu"))
            given = samples(options.pictures, options.side)
            wanted = np.array([float(sample.images[0].mean()) for sample in given])
            began = time.perf_counter()
            scores = RewardSet({"bright": (reward, 1.0)}).score(given)
            seconds = time.perf_counter() - began
        finally:
            if proxy is not None:
                proxy.close()
            server.kill()
        values, stats, lives = scores.values[:, 0], reward.stats(), server.lives()
        ok = scores.status[:, 0] == OK
        both = set(lives[0]) & set(lives[1]) if len(lives) > 1 else set()
        met: dict[str, int] = {} if proxy is None else dict(sorted(proxy.met.items()))
        return {
            "pictures": len(given),
            "requests": int(stats["requests"]),
            "faults": ", ".join(f"{name} {count}" for name, count in met.items()) or "none",
            "server killed": len(kills),
            "retries": int(stats["retries"]),
            "seconds": f"{seconds:.1f}",
            "pictures/s": f"{len(given) / seconds:.0f}",
            "p50 latency": f"{stats['latency_p50']:.3f} s",
            "p95 latency": f"{stats['latency_p95']:.3f} s",
            "lost": int((~ok).sum()),
            "wrong": int((np.abs(values[ok] - wanted[ok]) > 1e-9).sum()),
            "zero": int((values[ok] == 0).sum()),
            "scored twice": sum(count > 1 for life in lives for count in life.values()),
            "by both": len(both),
        }


def show(rows: dict[str, dict[str, Any]], title: str, write: Callable[[Table], None]) -> None:
    """One column per way."""
    table = Table(title=title)
    table.add_column("")
    for way in rows:
        table.add_column(way, overflow="fold")
    for name in next(iter(rows.values())):
        table.add_row(name, *(str(row[name]) for row in rows.values()))
    write(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--side", type=int, default=16, help="pixels of a picture's side")
    parser.add_argument("--encoding", nargs="+", default=["json", "multipart"], choices=["json", "multipart"])
    options = parser.parse_args()
    console = Console(width=120)
    for encoding in options.encoding:
        rows = {way: measure(way, encoding, options) for way in WAYS}
        title = f"{encoding}, {options.side} x {options.side} pixels, batches of {options.batch}, {options.concurrency} at a time"
        show(rows, f"{title}, {os.cpu_count()} CPU cores", console.print)


if __name__ == "__main__":
    main()
