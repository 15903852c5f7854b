"""Rewards -> advantages: group rules and shaping, in float64 over the globally gathered batch."""

from __future__ import annotations

COMPONENTS: dict[str, dict[str, str]] = {
    "advantage": {
        "group": "mmrl.advantage.group:GroupAdvantage",
        "dr": "mmrl.advantage.group:DrAdvantage",
        "rloo": "mmrl.advantage.group:RlooAdvantage",
        "global": "mmrl.advantage.group:GlobalAdvantage",
        "ngrpo": "mmrl.advantage.negative:Ngrpo",
        "sign": "mmrl.advantage.negative:SignAdvantage",
        "per_prompt_history": "mmrl.advantage.ddpo:PerPromptHistory",
        "dcpo": "mmrl.advantage.dcpo:DcpoAdvantage",
        "branch": "mmrl.advantage.branch:BranchAdvantage",
        "treepo": "mmrl.advantage.tree:TreePo",
    },
    "shaping": {
        "clamp": "mmrl.advantage.shaping:Clamp",
        "constraint": "mmrl.advantage.constraint:Constraint",
        "vogue": "mmrl.advantage.vogue:Vogue",
        "grpo_care": "mmrl.advantage.care:GrpoCare",
        "rac": "mmrl.advantage.rac:Rac",
        "majority": "mmrl.advantage.majority:Majority",
        "grpo_lambda": "mmrl.advantage.length_gate:GrpoLambda",
        "checklist_gate": "mmrl.advantage.checklist:ChecklistGate",
        "noisy_verifier": "mmrl.advantage.noisy:NoisyVerifier",
    },
}
