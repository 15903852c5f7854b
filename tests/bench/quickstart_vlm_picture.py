"""The picture of the reasoner's quickstart, from a run's own files: how many answers were right, and some of the puzzles.

python tests/bench/quickstart_vlm_picture.py RUN docs/images/quickstart_vlm.png
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

COLUMNS, ROWS = 5, 2
BARS = {"before RL": "#9aa5b1", "after RL": "#2e9e4f", "after RL, blank picture": "#d9a441"}
MARKS = {True: ("✓", "#1a7f37"), False: ("✗", "#c62f2f")}


def main(run: Path, out: Path) -> None:
    rl = json.loads((run / "summary.json").read_text())["stages"]["rl"]
    notes = {
        when: json.loads(sorted((run / "samples").glob(f"*_{when}.json"))[-1].read_text())
        for when in ("before", "after")
    }
    figure = plt.figure(figsize=(13, 5.2), dpi=100, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[4.2, 8])
    draw_bars(left.subplots(), rl["before"], rl["after"])
    axes = right.subplots(ROWS, COLUMNS).ravel()
    for axis, before, after in zip(axes, notes["before"], notes["after"], strict=False):
        draw_puzzle(axis, run / "samples", before, after)
    figure.savefig(out)
    print(out)


def draw_bars(axis: Any, before: dict[str, float], after: dict[str, float]) -> None:
    """Right answers in percent by kind and level, with the chance level of each."""
    parts = ["", *sorted(key.removeprefix("right/") for key in after if re.fullmatch(r"right/kind=\w+,level=\d+", key))]
    names = ["right" + (f"/{part}" if part else "") for part in parts]
    series = [
        [before[name] for name in names],
        [after[name] for name in names],
        [after[f"{name}/blind"] for name in names],
    ]
    at = np.arange(len(parts))
    for number, ((label, colour), values) in enumerate(zip(BARS.items(), series, strict=True)):
        axis.bar(at + (number - 1) * 0.27, 100 * np.array(values), 0.25, color=colour, label=label)
    for x, name in zip(at, names, strict=True):
        chance = 100 * after[f"{name}/chance"]
        axis.hlines(
            chance, x - 0.42, x + 0.42, colors="#1f2328", linestyles="dotted", label="chance" if x == 0 else None
        )
    labels = [re.sub(r"kind=(\w+),level=(\d+)", "\\1\nlevel \\2", part) or "all" for part in parts]
    axis.set_xticks(at, labels, fontsize=8)
    axis.set(ylim=(0, 105), ylabel="right answers to held-out puzzles, %")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(0, 1.16), ncols=2)


def draw_puzzle(axis: Any, folder: Path, before: dict[str, Any], after: dict[str, Any]) -> None:
    """A puzzle's picture over both answers."""
    axis.imshow(np.asarray(Image.open(folder / before["media"][0][0]["file"])), interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_title(before["about"], fontsize=8)
    for line, (when, note) in enumerate((("before", before), ("after", after))):
        answer = re.search(r"<answer>(.*?)</answer>", note["text"])
        mark, colour = MARKS[note["rewards"]["right"] == 1]
        said = f"{when}: {answer[1] if answer else 'no answer'} {mark}"
        axis.text(
            0.5, -0.06 - 0.13 * line, said, transform=axis.transAxes, ha="center", va="top", fontsize=9, color=colour
        )
    axis.text(
        0.5,
        -0.06 - 0.26,
        f"right: {before['answer']}",
        transform=axis.transAxes,
        ha="center",
        va="top",
        fontsize=8,
        color="#667079",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
