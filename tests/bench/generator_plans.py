"""Rollout plans and losses of generators side by side: reward and held-out accuracy against seconds, from one warm start per seed.

    python tests/bench/generator_plans.py [--seeds 1 2 3] [--seconds 90] [--out runs/plans] [--only all window ...]

Every seed is warmed up once (the warm stage of quickstart/generative); every plan then trains from that model with the same prompts,
samples per step, rewards and seeds, one thread per run, for about `--seconds` of training (evaluation not counted): its steps are the
seconds divided by those of a step in a short pilot run. Runs that have a summary are not made again. Prints the table of
docs/generative.md and draws docs/images/generator_plans.png with --picture.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from ruamel.yaml import YAML

STEPS = 6
BASE: dict[str, Any] = {"num_steps": STEPS, "sampler": {"kind": "flow_sde", "level": 0.7}, "micro_batch": 192}
KL = {"name": "kl", "coef": 0.03, "estimator": "exact", "norm": "s2"}
CLIP = {"name": "clip", "low": 0.2, "high": 0.2}
WINDOW = {"name": "window", "size": 2, "schedule": "random", "range": [1, 3]}


def plan(rollout: dict[str, Any], select: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The rl stage's values of one plan."""
    objective = {
        "advantage": more.pop("advantage", {"name": "group", "scale": "group"}),
        "steps": {"select": select, "weight": {"name": more.pop("weight", "uniform")}},
        "surrogate": more.pop("surrogate", CLIP),
        "terms": more.pop("terms", [KL]),
    }
    return {"prompts_per_step": 8, "group_size": 12, "rollout": BASE | rollout, "objective": objective, **more}


PLANS: dict[str, dict[str, Any]] = {
    "all steps": plan({"stochastic": "all", "start_noise": "shared"}, {"name": "fraction", "fraction": 0.99}),
    "window": plan({"stochastic": "selected", "start_noise": "shared"}, WINDOW),
    "Flash": plan({"stochastic": "selected", "start_noise": "shared", "flash": {"ratio": 0.4}}, WINDOW),
    "branch": plan(
        {"stochastic": "all", "start_noise": "shared", "branch": {"at": [0, 1, 2]}},
        {"name": "fraction", "fraction": 0.99},
        advantage={"name": "branch"},
        group_size=8,
        prompts_per_step=12,
    ),
    "Branch-Mix": plan(
        {"stochastic": "selected", "start_noise": "shared", "branch": {"at": [1, 2], "factor": 4}},
        {"name": "window", "size": 1, "schedule": "progressive", "stride": 0, "range": [1, 3]},
        advantage={"name": "branch"},
        group_size=16,
        prompts_per_step=6,
    ),
    "TempFlow": plan(
        {"stochastic": "selected", "start_noise": "shared", "fan_out": {"at": [1, 2]}}, {"name": "all"}, weight="noise"
    ),
    "NFT": plan(
        {"sampler": {"kind": "ode"}, "stochastic": "all", "start_noise": "separate"},
        {"name": "all"},
        surrogate={"name": "nft", "times": 4, "levels": "schedule", "decay": 0.5, "rate": 0.01},
        terms=[],
    ),
    "AWM": plan(
        {"sampler": {"kind": "ode"}, "stochastic": "all", "start_noise": "separate"},
        {"name": "all"},
        surrogate={"name": "awm", "times": 4, "weight": "uniform", "t_min": 0.3, "low": 0.02, "high": 0.02},
        terms=[{"name": "kl", "coef": 1.0, "estimator": "exact", "norm": "v"}],
    ),
}
EVALUATIONS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--out", type=Path, default=Path("runs/plans"))
    parser.add_argument("--only", nargs="+", default=list(PLANS))
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:
        model = warm(options.out / f"warm_{seed}", seed)
        for name in options.only:
            runs.setdefault(name, []).append(trained(name, seed, model, options.out, options.seconds))
    table(runs)
    if options.picture is not None:
        draw(runs, options.picture)


def warm(folder: Path, seed: int) -> Path:
    """The warmed-up pipeline of a seed, as a diffusers folder."""
    model = folder / "model"
    if not (model / "model_index.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        config = {"extends": "quickstart/generative", "stages": {"rl": None}, "evaluation": None}
        mmrl(
            "train",
            write(folder / "warm.yaml", config),
            f"run.dir={folder / 'run'}",
            f"run.seed={seed}",
            "run.threads=1",
        )
        mmrl("export", str(folder / "run"), "--to", "diffusers", "--out", str(model))
    return model


def trained(name: str, seed: int, model: Path, out: Path, seconds: float) -> dict[str, Any]:
    """What the run of one plan and seed says, made if it is not there."""
    folder = out / f"{name.replace(' ', '_').lower()}_{seed}"
    if not (folder / "run" / "summary.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        pilot = folder.with_name(f"{folder.name}_pilot")
        if not (pilot / "summary.json").is_file():
            train(name, seed, model, folder, pilot, 8, pictures=False)
        steps = max(8, round(seconds / step_seconds(pilot)))
        train(name, seed, model, folder, folder / "run", steps, pictures=True)
    return curve(folder / "run") | {"name": name, "seed": seed}


def train(name: str, seed: int, model: Path, folder: Path, run: Path, steps: int, pictures: bool) -> None:
    stage = {"kind": "rl", "steps": steps, **PLANS[name]}
    config: dict[str, Any] = {
        "extends": "quickstart/generative",
        "policy": {"name": "sd3", "path": str(model.resolve()), "dtype": "float32", "max_sequence_length": 2},
        "stages": {"warm": None, "rl": stage},
        "evaluation": {"every": max(1, -(-steps // EVALUATIONS)), "pictures": 0, "pictures_every": None}
        if pictures
        else None,
        "checkpoint": {"every": 100000},
    }
    values = [f"run.dir={run}", f"run.seed={seed}", "run.threads=1"]
    mmrl("train", write(folder / f"{run.name}.yaml", config), *values)


def step_seconds(run: Path) -> float:
    """Seconds of a training step, the first two left out."""
    times = [line["time"]["seconds"] for line in lines(run) if "reward" in line and "seconds" in line["time"]]
    return mean(times[2:])


def curve(run: Path) -> dict[str, Any]:
    """Seconds of training so far with the training reward and the held-out accuracies."""
    spent, reward, held_out = 0.0, [], []
    nfe = 0.0
    for line in lines(run):
        if "reward" in line:
            spent += line["time"]["seconds"]
            reward.append((spent, line["reward"]))
            nfe = line.get("rollout/nfe", nfe)
        if "eval/strict" in line:
            held_out.append((spent, line["eval/strict"], line["eval/exact"], line["eval/dense"]))
    return {"reward": reward, "held_out": held_out, "nfe": nfe, "steps": len(reward), "seconds": spent}


def reach(held_out: list[tuple[float, ...]], level: float) -> float | None:
    """Seconds until strict accuracy is `level`, interpolated between evaluations; None when it never is."""
    for (t0, a0, *_), (t1, a1, *_) in pairwise(held_out):
        if a0 >= level:
            return t0
        if a1 >= level:
            return t0 + (t1 - t0) * (level - a0) / (a1 - a0)
    return None


def table(runs: dict[str, list[dict[str, Any]]]) -> None:
    target = mean(one["held_out"][-1][1] for one in runs["all steps"]) if "all steps" in runs else None
    print(
        "| plan | calls per image | steps | s per step | reward | strict before | strict after | after, by seed | s to all steps' accuracy |"
    )
    print("|---" * 9 + "|")
    for name, found in runs.items():
        ends = [one["held_out"][-1][1] for one in found]
        averaged = average([one["held_out"] for one in found])
        when = None if target is None else reach(averaged, target)
        cells = [
            name,
            f"{mean(one['nfe'] for one in found):.2f}",
            f"{mean(one['steps'] for one in found):.0f}",
            f"{mean(one['seconds'] / one['steps'] for one in found):.3f}",
            f"{mean(mean(r for _, r in one['reward'][-10:]) for one in found):.3f}",
            f"{100 * mean(one['held_out'][0][1] for one in found):.1f}",
            f"{100 * mean(ends):.1f}",
            ", ".join(f"{100 * end:.1f}" for end in ends),
            "not reached" if when is None else f"{when:.0f}",
        ]
        print("| " + " | ".join(cells) + " |")


def average(curves: list[list[tuple[float, ...]]]) -> list[tuple[float, ...]]:
    """Point by point mean over seeds (every run is evaluated equally often)."""
    size = min(len(one) for one in curves)
    return [tuple(mean(column) for column in zip(*(one[k] for one in curves), strict=True)) for k in range(size)]


def draw(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Reward and held-out strict accuracy against seconds: the mean of the seeds, and the seeds in light lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), constrained_layout=True)
    colors = plt.get_cmap("tab10")
    for number, (name, found) in enumerate(runs.items()):
        color = colors(number)
        for one in found:
            right.plot(
                [p[0] for p in one["held_out"]], [100 * p[1] for p in one["held_out"]], color=color, alpha=0.2, lw=0.8
            )
        middle = average([one["held_out"] for one in found])
        right.plot([p[0] for p in middle], [100 * p[1] for p in middle], color=color, label=name, lw=2)
        smooth = average(
            [
                [
                    (t, mean(r for _, r in one["reward"][max(0, k - 9) : k + 1]))
                    for k, (t, _) in enumerate(one["reward"])
                ]
                for one in found
            ]
        )
        left.plot([p[0] for p in smooth], [p[1] for p in smooth], color=color, label=name, lw=1.5)
    left.set(xlabel="seconds of training", ylabel="training reward (mean of the last 10 steps)")
    right.set(xlabel="seconds of training", ylabel="held-out strict accuracy, %")
    right.legend(frameon=False, fontsize=9)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def write(path: Path, config: dict[str, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        YAML(typ="safe").dump(config, file)
    return str(path)


def mmrl(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "mmrl", *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
