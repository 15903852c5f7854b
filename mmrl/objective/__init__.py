"""Advantages and log-probs -> loss: surrogates, terms, step selectors and weights, aggregation."""

from __future__ import annotations

COMPONENTS: dict[str, dict[str, str]] = {
    "surrogate": {
        "clip": "mmrl.objective.surrogate:Clip",
        "reinforce": "mmrl.objective.surrogate:Reinforce",
        "gspo": "mmrl.objective.sequence:Gspo",
        "gmpo": "mmrl.objective.sequence:Gmpo",
        "cispo": "mmrl.objective.cispo:Cispo",
        "sapo": "mmrl.objective.sapo:Sapo",
        "archer": "mmrl.objective.archer:Archer",
        "aspo": "mmrl.objective.aspo:Aspo",
        "dcpo": "mmrl.objective.dcpo:Dcpo",
    },
    "term": {
        "kl": "mmrl.objective.kl:KL",
        "entropy": "mmrl.objective.entropy:Entropy",
        "papo": "mmrl.objective.views:Papo",
        "dvrp": "mmrl.objective.views:Dvrp",
    },
    "steps": {
        "all": "mmrl.objective.steps:AllSteps",
        "fraction": "mmrl.objective.steps:FractionSteps",
        "random": "mmrl.objective.steps:RandomSteps",
        "depth_pruned": "mmrl.objective.steps:DepthPruned",
        "window": "mmrl.objective.window:WindowSteps",
        "entropy": "mmrl.objective.entropy:EntropySteps",
    },
    "weight": {
        "uniform": "mmrl.objective.weight:UniformWeight",
        "noise": "mmrl.objective.weight:NoiseWeight",
    },
    "correction": {
        "tis": "mmrl.objective.correction:Tis",
    },
}
