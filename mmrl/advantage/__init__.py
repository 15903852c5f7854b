"""Rewards -> advantages: group rules and shaping, in float64 over the globally gathered batch."""

from __future__ import annotations

COMPONENTS: dict[str, dict[str, str]] = {
    "advantage": {
        "group": "mmrl.advantage.group:GroupAdvantage",
        "dr": "mmrl.advantage.group:DrAdvantage",
        "rloo": "mmrl.advantage.group:RlooAdvantage",
        "global": "mmrl.advantage.group:GlobalAdvantage",
    },
    "shaping": {
        "clamp": "mmrl.advantage.shaping:Clamp",
    },
}
