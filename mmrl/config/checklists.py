"""Whether a checklist fits the stage that asks it."""

from __future__ import annotations

from typing import Any

from mmrl.config.builder import Builder
from mmrl.config.resolved import ResolvedRL


def check_checklist(stage: ResolvedRL, policy: Any, build: Builder) -> None:
    """What the option `curriculum.checklist` and the shapings that read it must fulfil together."""
    section, path = stage.section, ("stages", stage.name)
    asked = section.curriculum.checklist
    reading = [number for number, shaping in enumerate(stage.objective.shaping) if shaping.reads_checklist]
    if asked is None:
        for number in reading:
            build.problem(
                (*path, "objective", "shaping", number),
                f"{section.objective.shaping[number].name} reads the answers to sub-questions, and none are asked; add "
                "curriculum.checklist={questions: 2, group_size: 4}",
            )
        return
    here = (*path, "curriculum", "checklist")
    if not reading:
        build.problem(
            here,
            "nothing reads the answers to the sub-questions; add {name: checklist_gate} to objective.shaping (threshold: 0 only trains them)",
        )
    if not hasattr(policy, "given"):
        build.problem(
            here,
            f"sub-questions are answered with text, and {type(policy).__name__} writes none; use a policy that writes (vlm, tiny_qwen3vl)",
        )
    if stage.objective.whole_groups:
        build.problem(
            here,
            f"surrogate {section.objective.surrogate.name} needs groups that divide into updates and processes, and the number of "
            "sub-questions differs from step to step; leave the checklist out",
        )
