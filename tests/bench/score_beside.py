"""What `rollout_parts` gains where a reward waits for something else: seconds of a step with 1, 2, 4 ... parts.

    python tests/bench/score_beside.py [--delay 0.02] [--steps 6]

Trains the embedded text-to-image model through the command line; the reward takes `delay` seconds per picture, as a server would, and
costs this machine nothing. The draws, and so the rewards, are the same in all runs, which is checked.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

REWARD = '''
import time


def slow(samples, delay=0.02):
    """The mean brightness, after a while."""
    time.sleep(delay * len(samples))
    return [float(sample.images[0].mean() / 255) for sample in samples]
'''


def run(folder: Path, parts: int, delay: float, steps: int) -> list[dict[str, Any]]:
    """The metrics of a run's steps."""
    overrides = [
        f"run.dir={folder / f'parts{parts}'}", "run.threads=2", "stages.warm=null", "evaluation=null", f"stages.rl.steps={steps}",
        f"stages.rl.rollout_parts={parts}", "stages.rl.optimizer.warmup_steps=0",
        f"stages.rl.rewards={{slow: {{name: '{folder / 'slow.py'}:slow', delay: {delay}}}}}",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "mmrl", "train", "quickstart/generative", *overrides], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    lines = (folder / f"parts{parts}" / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["stage"] == "rl" and "reward" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay", type=float, default=0.02, help="seconds per picture")
    parser.add_argument("--steps", type=int, default=6)
    arguments = parser.parse_args()
    print(
        f"{os.cpu_count()} cores, reward of {arguments.delay:g} s per picture; medians over {arguments.steps - 1} steps"
    )
    print(f"{'parts':>5} {'step s':>8} {'rollout s':>10} {'reward s':>9} {'waited s':>9} {'faster':>7}")
    first: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "slow.py").write_text(REWARD)
        for parts in (1, 2, 4, 8):
            found = run(folder, parts, arguments.delay, arguments.steps)
            first = first or found
            assert abs(found[0]["reward"] - first[0]["reward"]) < 1e-6, "the parts changed what was drawn"
            times = [line["time"] for line in found[1:]]
            own = {key: median(time.get(key, 0.0) for time in times) for key in times[0]}
            base = median(line["time"]["seconds"] for line in first[1:])
            waited = own.get("seconds/reward_wait", own["seconds/reward"])
            print(
                f"{parts:>5} {own['seconds']:>8.2f} {own['seconds/rollout']:>10.2f} {own['seconds/reward']:>9.2f} {waited:>9.2f} "
                f"{base / own['seconds']:>6.2f}x"
            )


if __name__ == "__main__":
    main()
