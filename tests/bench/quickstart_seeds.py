"""The quickstart for several seeds, through the real command; prints the table that stands in docs/quickstart.md.

    python tests/bench/quickstart_seeds.py [--seeds 1 2 3] [--out runs/seeds] [--nproc 2]

A seed whose folder holds a summary is not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

REWARDS = ("exact", "strict", "dense", "clean")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--nproc", type=int, default=2)
    options = parser.parse_args()
    rows = [row(seed, run(seed, options.out, options.nproc)) for seed in options.seeds]
    names = [f"{name} {when}" for name in REWARDS for when in ("before", "after")]
    print("| seed | " + " | ".join(names) + " | warm start s | RL s | RL images/s |")
    print("|---" * (len(names) + 4) + "|")
    for cells in rows:
        print("| " + " | ".join(cells) + " |")


def run(seed: int, out: Path, nproc: int) -> dict[str, Any]:
    """The summary of a seed's run, made if it is not there."""
    folder = out / str(seed)
    if not (folder / "summary.json").is_file():
        command = [
            sys.executable,
            "-m",
            "mmrl",
            "train",
            "quickstart/generative",
            f"run.dir={folder}",
            f"run.seed={seed}",
        ]
        subprocess.run([*command, "--nproc", str(nproc)], check=True)
    return json.loads((folder / "summary.json").read_text())


def row(seed: int, summary: dict[str, Any]) -> list[str]:
    warm, rl = summary["stages"]["warm"], summary["stages"]["rl"]
    cells = [str(seed)]
    for name in REWARDS:
        before, after = rl["before"][name], rl["after"][name]
        scale, sign = (100, f" ({100 * (after - before):+.1f})") if name != "clean" else (1, "")
        digits = 1 if scale == 100 else 3
        cells += [f"{scale * before:.{digits}f}", f"{scale * after:.{digits}f}{sign}"]
    return [*cells, f"{warm['seconds']:.0f}", f"{rl['training_seconds']:.0f}", f"{rl['samples_per_second']:.0f}"]


if __name__ == "__main__":
    main()
