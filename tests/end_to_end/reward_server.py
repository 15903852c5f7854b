"""`mmrl serve-rewards` in a process of its own, for tests and for the benchmark, with rewards that note what they score."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np

from mmrl.rollout import Prompt, Sample

REWARD = '''
import os
import time
from pathlib import Path

from mmrl.reward.pairwise import PairwiseReward
from mmrl.reward import Graded, Reward


def note(samples, log):
    with Path(log).open("a") as file:
        file.writelines(f"{os.getpid()} {sample.prompt.id}\\n" for sample in samples)


def brightness(samples, log, pause=0.0):
    """Mean pixel of each picture; notes the process and the prompts that it scored."""
    note(samples, log)
    time.sleep(pause)
    return [float(sample.images[0].mean()) for sample in samples]


class Above(Reward):
    """Groupwise: how far the brightness is above the mean of the group; says how many it saw."""

    scope = "groupwise"
    higher_is_better = False
    deterministic = False
    needs = ("image",)
    log: str

    def score(self, samples):
        note(samples, self.log)
        own = [float(sample.images[0].mean()) for sample in samples]
        return [Graded(value - sum(own) / len(own), f"of {len(own)}") for value in own]


class Brighter(PairwiseReward):
    """Pairwise: the brighter one wins."""

    needs = ("image",)
    log: str

    def compare(self, pairs):
        note([one for pair in pairs for one in pair], self.log)
        means = [[float(one.images[0].mean()) for one in pair] for pair in pairs]
        return [0.5 if a == b else float(a > b) for a, b in means]


def seen(samples):
    """Says everything that a sample holds in its word, so that a test can read it; leaves an answer where there is text."""
    out = []
    for sample in samples:
        if sample.text:
            sample.meta["answer"] = sample.text.upper()
            out.append(Graded(1.0, "read"))
            continue
        video = None if sample.video is None else (sample.video.shape, int(sample.video.sum()))
        latents = {k: (str(v.dtype), float(v.float().sum())) for k, v in sample.meta.pop("latents", {}).items()}
        media = [(one.shape, int(one.sum())) for one in sample.prompt.media]
        references = [(one.shape, int(one.sum())) for one in sample.prompt.meta.get("reference_media", ())]
        plain = {k: v for k, v in sample.prompt.meta.items() if k != "reference_media"}
        images = [(one.shape, int(one.sum())) for one in sample.images]
        facts = dict(video=video, latents=latents, media=media, references=references, images=images,
                     meta=plain, output=sample.meta, target=sample.prompt.target)
        out.append(Graded(2.0, repr(facts)))
    return out
'''


class Server:
    """On a port that stays the same when it is started again. `more` goes into the `serve` block, `bright` into the options of the
    reward of that name."""

    def __init__(self, folder: Path, more: str = "", env: dict[str, str] | None = None, bright: str = "") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (folder / "reward.py").write_text(REWARD)
        self.log, self.said = folder / "scored.txt", folder / "server.log"
        self.config = folder / "serve.yaml"
        self.config.write_text(
            f"rewards:\n  bright: {{name: 'reward.py:brightness', log: {self.log}{bright}}}\n"
            f"  above: {{name: 'reward.py:Above', log: {self.log}}}\n"
            f"  brighter: {{name: 'reward.py:Brighter', log: {self.log}}}\n"
            "  seen: {name: 'reward.py:seen'}\n"
            f"serve: {{port: {self.port}, device: cpu{more}}}\n"
        )
        self.env = {**os.environ, **(env or {})}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mmrl", "serve-rewards", str(self.config)]
        with self.said.open("ab") as said:
            self.process = subprocess.Popen(command, env=self.env, stdout=said, stderr=said)

    def wait(self, seconds: float = 120) -> None:
        """Until it answers."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.alive:
            try:
                if httpx.get(f"{self.url}/healthz", trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.2)
        raise AssertionError(f"the server did not start: {self.said.read_text()[-2000:]}")

    def kill(self) -> None:
        """At once, without a chance to end anything."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self, seconds: float = 60) -> int:
        """As an operator does; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def lives(self) -> list[Counter[str]]:
        """How often each prompt was scored, by each process that served, in order."""
        found: dict[str, Counter[str]] = {}
        for line in self.log.read_text().splitlines() if self.log.exists() else []:
            process, prompt = line.split(" ", 1)
            found.setdefault(process, Counter())[prompt] += 1
        return list(found.values())


def samples(count: int, side: int = 16) -> list[Sample]:
    """Noise pictures, a prompt each."""
    rng = np.random.default_rng(0)
    return [
        Sample(Prompt(f"p{i}", "a picture"), images=(rng.integers(0, 256, (side, side, 3), dtype=np.uint8),))
        for i in range(count)
    ]
