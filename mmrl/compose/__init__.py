"""What happens to a reward's scores before they are summed: scales, limits, gates. A reward's `then` is a list of these."""

from __future__ import annotations

COMPONENTS: dict[str, dict[str, str]] = {
    "transform": {
        "affine": "mmrl.compose.scale:Affine",
        "min_max": "mmrl.compose.scale:MinMax",
        "running": "mmrl.compose.scale:Running",
        "standardise": "mmrl.compose.scale:Standardise",
        "rank": "mmrl.compose.scale:Rank",
        "clip": "mmrl.compose.scale:Clip",
        "gate": "mmrl.compose.gates:Gate",
        "times": "mmrl.compose.gates:Times",
        "lagrange": "mmrl.compose.gates:Lagrange",
    },
}
