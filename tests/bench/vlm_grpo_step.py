"""One GRPO step on pictures (generation, reward, update) of this project, of TRL's GRPOTrainer and of a plain loop.

All sides train all weights of the same tiny Qwen3-VL in float32 on the same prompts and pictures, step by step: 8 prompts x 8
answers of exactly 24 tokens at temperature 1, group advantages, clip 0.2, no KL, one AdamW update per rollout over all 64
answers at once, the same reward function and thread count. TRL and the plain loop load the model from a folder.
No answer ends early: TRL and the plain loop get min_new_tokens = max_new_tokens, the project no end token.

Two workloads: `short` (56 x 56 pixels, 4 vision tokens) and `picture` (560 x 560 pixels, 400 vision tokens). Every side is a
process of its own; all wait but one, and they take turns step by step, each turn in another order, so that a busy machine
slows them alike. Medians over `--repeats` turns after `--warmup` turns; ratios are medians of the turns' own ratios (lowest to
highest). Seconds are those of a clock on the wall; processor seconds leave out the waiting for a processor.

    pip install 'mmrl[bench]'
    python tests/bench/vlm_grpo_step.py [--prompts 8] [--group 8] [--tokens 24] [--threads 1] [--repeats 5] [--json]

TRL runs with and without gradient checkpointing (its default is with). `--micro-batch` is the number of answers in one of
the project's passes; the plain loop has one pass, TRL as many as is fastest for it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from vlm_sides import RUNS, SIZES, Turns

PHASES = ("generation", "forward", "backward", "optimizer", "rest")
SIDES = {"mmrl": "mmrl", "trl": "TRL", "trl_checkpointing": "TRL, checkpointing", "naive": "plain loop"}


class Side:
    """A process that waits for its turns."""

    def __init__(self, name: str, options: argparse.Namespace, folder: str) -> None:
        self.name, self.log = name, Path(folder) / f"{name}.log"
        numbers = [f"--{key.replace('_', '-')}={getattr(options, key)}" for key in NUMBERS]
        self.process = subprocess.Popen(
            [sys.executable, __file__, *numbers, "--workload", options.workload, "--side", name, "--folder", folder],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log.open("w"), text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false"},
        )  # fmt: skip

    def step(self) -> dict[str, float]:
        assert self.process.stdin and self.process.stdout
        line = ""
        if self.process.poll() is None:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended early:\n{self.log.read_text()[-3000:]}")
        return dict(json.loads(line))


NUMBERS = {
    "prompts": 8, "group": 8, "tokens": 24, "micro_batch": 64, "threads": 1, "repeats": 5, "warmup": 2,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in NUMBERS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--workload", choices=tuple(SIZES), help="one of the two alone")
    parser.add_argument("--json", action="store_true", help="one JSON row per workload")
    parser.add_argument("--side", choices=tuple(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        import torch

        torch.set_num_threads(options.threads)
        RUNS[options.side](options, Turns())
        return
    for workload in [options.workload] if options.workload else list(SIZES):
        options.workload = workload
        with tempfile.TemporaryDirectory() as folder:
            report(measured(options, folder), options)


def measured(options: argparse.Namespace, folder: str) -> dict[str, list[dict[str, float]]]:
    """What every side says of every turn."""
    from mmrl.vlm.tiny import build_tiny_qwen3vl

    build_tiny_qwen3vl(folder, max_pixels=max(SIZES[options.workload], 112) ** 2)
    sides = [Side(name, options, folder) for name in SIDES]
    times: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
    try:
        for turn in range(options.warmup + options.repeats):
            for offset in range(len(sides)):
                side = sides[(turn + offset) % len(sides)]
                found = side.step()
                if found["tokens"] != options.tokens:
                    sys.exit(f"{side.name} wrote {found['tokens']} tokens per answer, expected {options.tokens}")
                if turn >= options.warmup:
                    times[side.name].append(found)
    finally:
        for side in sides:
            side.process.kill()
            side.process.wait()
    return times


def report(times: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> None:
    def median(name: str, key: str) -> float:
        return statistics.median(turn.get(key, 0.0) for turn in times[name])

    def over_ours(name: str, key: str) -> str:
        found = [own[key] / ours[key] for own, ours in zip(times[name], times["mmrl"], strict=True)]
        return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"

    def row(title: str, cells: Callable[[str], str]) -> None:
        print(f"| {title} | " + " | ".join(cells(name) for name in SIDES) + " |", flush=True)

    samples = options.prompts * options.group
    versions = {name: version(name) for name in ("torch", "transformers", "trl")}
    if options.json:
        head = {"machine": platform.processor() or platform.machine(), **versions}
        head |= {key: getattr(options, key) for key in (*NUMBERS, "workload")}
        print(json.dumps(head | {"turns": times}), flush=True)
        return
    print(f"\n{options.workload}: {samples} answers of {options.tokens} tokens, {options.threads} thread(s), ", end="")
    print(", ".join(f"{name} {number}" for name, number in versions.items()) + f"; median of {options.repeats}\n")
    row("seconds", SIDES.__getitem__)
    print("|---|" + "---|" * len(SIDES))
    for phase in (*PHASES, "all"):
        row(phase, lambda name, phase=phase: f"{median(name, phase):.3f}")  # type: ignore[misc]
    row("samples/s", lambda name: f"{samples / median(name, 'all'):.1f}")
    row("all / mmrl's", lambda name: over_ours(name, "all"))
    row("processor seconds", lambda name: f"{median(name, 'cpu'):.3f}")
    row("processor seconds / mmrl's", lambda name: over_ours(name, "cpu"))
    row("prompt tokens per answer", lambda name: f"{median(name, 'prompt_tokens'):.1f}")
    row("peak memory, MB", lambda name: f"{max(turn['memory'] for turn in times[name]):.0f}")


if __name__ == "__main__":
    main()
