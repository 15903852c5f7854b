"""The picture of the quickstart: held-out prompts before and after RL, from a run's own samples.

python tests/bench/quickstart_picture.py RUN docs/images/quickstart.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import ImageFont

from mmrl.report.grid import cut_grid, verdict, wrap

COLUMNS, COLORS = 8, {"right": "#2e9e4f", "wrong": "#c8c8c8"}


def main(run: Path, out: Path) -> None:
    sheets = {when: sorted((run / "samples").glob(f"*_{when}.png"))[-1] for when in ("before", "after")}
    pictures = {when: cut_grid(path) for when, path in sheets.items()}
    notes = {when: json.loads(path.with_suffix(".json").read_text()) for when, path in sheets.items()}
    count = len(notes["before"]) // COLUMNS * COLUMNS
    figure, axes = plt.subplots(2 * count // COLUMNS, COLUMNS, figsize=(11, 3.4 * count / COLUMNS), dpi=100)
    for index in range(count):
        block, column = divmod(index, COLUMNS)
        for row, when in enumerate(("before", "after")):
            axis, found, note = axes[2 * block + row, column], pictures[when], notes[when][index]
            assert found is not None and found[index] is not None
            axis.imshow(np.asarray(found[index]), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            color = COLORS.get(verdict(note["rewards"]).state, "#808080")
            for spine in axis.spines.values():
                spine.set(edgecolor=color, linewidth=3)
            if row == 0:
                axis.set_title("\n".join(wrap(note["prompt"], ImageFont.load_default(), 110, 3)), fontsize=8)
            if column == 0:
                axis.set_ylabel(when, fontsize=9)
    figure.tight_layout(h_pad=0.4, w_pad=0.4)
    figure.savefig(out)
    print(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
