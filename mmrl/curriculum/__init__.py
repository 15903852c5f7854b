"""Which samples of a rollout are trained on."""

from __future__ import annotations

COMPONENTS: dict[str, dict[str, str]] = {
    "selection": {
        "all": "mmrl.curriculum.selection:SelectAll",
        "signal": "mmrl.curriculum.selection:SelectSignal",
        "best_of_n": "mmrl.curriculum.selection:BestOfN",
    },
}
