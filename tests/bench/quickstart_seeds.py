"""A quickstart for several seeds, through the real command; prints the table that stands in docs/quickstart.md.

    python tests/bench/quickstart_seeds.py generative [--seeds 1 2 3] [--out runs/seeds] [--nproc 2]
    python tests/bench/quickstart_seeds.py vlm

A seed whose folder holds a summary is not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SHOWN = {
    "generative": ("exact", "strict", "dense", "clean"),
    "vlm": ("right", "right/kind=rotation", "right/kind=jigsaw", "format", "right/blind", "right/chance"),
}
"""Held-out numbers of each quickstart, before and after RL."""
SEEDS = {"generative": ("run.seed",), "vlm": ("run.seed", "policy.seed")}
"""Settings that a seed is given to."""
PLAIN = ("clean",)
"""Numbers that are no percentages."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("quickstart", choices=SHOWN)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--nproc", type=int, default=2)
    options = parser.parse_args()
    name = options.quickstart
    rows = [row(name, seed, run(name, seed, options.out, options.nproc)) for seed in options.seeds]
    names = [f"{shown} {when}" for shown in SHOWN[name] for when in ("before", "after")]
    print("| seed | " + " | ".join(names) + " | warm start s | RL s | RL samples/s | all s |")
    print("|---" * (len(names) + 5) + "|")
    for cells in rows:
        print("| " + " | ".join(cells) + " |")


def run(name: str, seed: int, out: Path, nproc: int) -> dict[str, Any]:
    """The summary of a seed's run, made if it is not there."""
    folder = out / name / str(seed)
    if not (folder / "summary.json").is_file():
        command = [sys.executable, "-m", "mmrl", "train", f"quickstart/{name}", f"run.dir={folder}"]
        seeds = [f"{key}={seed}" for key in SEEDS[name]]
        subprocess.run([*command, *seeds, "--nproc", str(nproc)], check=True)
    return json.loads((folder / "summary.json").read_text())


def row(name: str, seed: int, summary: dict[str, Any]) -> list[str]:
    """The cells of a seed."""
    stages = summary["stages"]
    warm, rl = stages["warm"], stages["rl"]
    cells = [str(seed)]
    for shown in SHOWN[name]:
        before, after = rl["before"][shown], rl["after"][shown]
        scale, digits = (1, 3) if shown in PLAIN else (100, 1)
        gain = "" if shown in PLAIN else f" ({scale * (after - before):+.{digits}f})"
        cells += [f"{scale * before:.{digits}f}", f"{scale * after:.{digits}f}{gain}"]
    timed = (warm["seconds"], rl["training_seconds"], rl["samples_per_second"], warm["seconds"] + rl["seconds"])
    return [*cells, *(f"{value:.0f}" for value in timed)]


if __name__ == "__main__":
    main()
