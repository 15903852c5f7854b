"""Which samples of a rollout are trained on, how much a group counts, and when more are drawn."""

from __future__ import annotations

COMPONENTS: dict[str, dict[str, str]] = {
    "shaping": {
        "puzzlecraft": "mmrl.curriculum.puzzlecraft:PuzzleCraft",
    },
    "selection": {
        "all": "mmrl.curriculum.selection:SelectAll",
        "signal": "mmrl.curriculum.selection:SelectSignal",
        "width_pruned": "mmrl.curriculum.selection:WidthPruned",
        "best_of_n": "mmrl.curriculum.selection:BestOfN",
    },
}
