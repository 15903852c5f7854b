"""Advantages and log-probs -> loss: surrogates, terms, step selectors and weights, aggregation."""

from __future__ import annotations

COMPONENTS: dict[str, dict[str, str]] = {
    "surrogate": {
        "clip": "mmrl.objective.surrogate:Clip",
        "reinforce": "mmrl.objective.surrogate:Reinforce",
    },
    "term": {
        "kl": "mmrl.objective.kl:KL",
    },
    "steps": {
        "all": "mmrl.objective.steps:AllSteps",
        "fraction": "mmrl.objective.steps:FractionSteps",
        "random": "mmrl.objective.steps:RandomSteps",
        "window": "mmrl.objective.window:WindowSteps",
    },
    "weight": {
        "uniform": "mmrl.objective.weight:UniformWeight",
        "noise": "mmrl.objective.weight:NoiseWeight",
    },
}
