"""The resolved config as plain values: what config.yaml holds, with every default written out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mmrl.config.resolved import Resolved, ResolvedDirect, ResolvedDraws, ResolvedExamples, ResolvedRL
from mmrl.config.schema import RewardSpec, Spec
from mmrl.reward import Use

MAY_DIFFER = (
    "run.dir",
    "run.num_processes",
    "run.threads",
    "run.trackers",
    "run.name",
    "checkpoint.keep_last",
    "policy.engine.url",
    "policy.engine.weights_dir",
    "method",
)
"""Keys that may change between a run and its resumption: they do not change what is computed."""


def dump(resolved: Resolved) -> dict[str, Any]:
    """Every value that is in force, ready for YAML. File paths of components become absolute, so the file works anywhere."""
    config = resolved.config
    tree = config.model_dump(mode="json")
    tree["policy"] = _spec(config.policy, resolved.policy, resolved)
    for stage in resolved.stages:
        node = tree["stages"][stage.name]
        node["train"] = stage.train.model_dump(mode="json")
        if isinstance(stage, ResolvedExamples):
            node["examples"] = _spec(stage.section.examples, stage.examples, resolved)
        if isinstance(stage, ResolvedDraws):
            node["prompts"] = _spec(stage.section.prompts, stage.prompts, resolved)
            node["rewards"] = _rewards(stage.section.rewards, stage.rewards, resolved)
            node["sampling" if isinstance(stage, ResolvedDirect) else "rollout"] = stage.plan.model_dump(mode="json")
        if isinstance(stage, ResolvedRL):
            node["objective"] = _objective(stage, resolved)
    if resolved.evaluation is not None and config.evaluation is not None:
        node = tree["evaluation"]
        node["prompts"] = _spec(config.evaluation.prompts, resolved.evaluation.prompts, resolved)
        node["sampling"] = resolved.evaluation.plan.model_dump(mode="json")
        node["rewards"] = _rewards(config.evaluation.rewards, resolved.evaluation.rewards, resolved)
    return tree


def _spec(spec: Spec, component: Any, resolved: Resolved) -> dict[str, Any]:
    name = spec.name
    file, _, attribute = name.rpartition(":")
    if file.endswith(".py"):
        local = (resolved.source.folder / file).resolve()
        name = f"{local if local.is_file() else Path(file).resolve()}:{attribute}"
    written = getattr(component, "written_options", None)
    options = written() if written is not None else component.model_dump(mode="json")
    return {"name": name, **options}


def _rewards(specs: Mapping[str, RewardSpec], built: Mapping[str, Use], resolved: Resolved) -> dict[str, Any]:
    return {name: _reward(spec, built[name], resolved) for name, spec in specs.items()}


def _reward(spec: RewardSpec, use: Use, resolved: Resolved) -> dict[str, Any]:
    own = {key: getattr(spec, key) for key in type(spec).model_fields if key != "name"}
    then = [_spec(s, c, resolved) for s, c in zip(spec.then, use.then, strict=True)]
    return {**_spec(spec, use.reward, resolved), **own, "then": then}


def _objective(stage: ResolvedRL, resolved: Resolved) -> dict[str, Any]:
    spec, built = stage.section.objective, stage.objective
    return spec.model_dump(mode="json") | {
        "advantage": _spec(spec.advantage, built.advantage, resolved),
        "shaping": [_spec(s, c, resolved) for s, c in zip(spec.shaping, built.shaping, strict=True)],
        "selection": _spec(spec.selection, built.selection, resolved),
        "steps": {
            "select": _spec(spec.steps.select, built.select, resolved),
            "weight": _spec(spec.steps.weight, built.weight, resolved),
        },
        "surrogate": _spec(spec.surrogate, built.surrogate, resolved),
        "terms": [_spec(s, c, resolved) for s, c in zip(spec.terms, built.terms, strict=True)],
        "correction": None if spec.correction is None else _spec(spec.correction, built.correction, resolved),
    }


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": [1]}}` -> `{"a.b.0": 1}`."""
    if isinstance(tree, Mapping) and tree:
        return {k: v for key, value in tree.items() for k, v in flatten(value, f"{prefix}{key}.").items()}
    if isinstance(tree, list) and tree:
        return {k: v for index, value in enumerate(tree) for k, v in flatten(value, f"{prefix}{index}.").items()}
    return {prefix.rstrip("."): tree}


def differences(file: Path, settings: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, old, new) for every value of `settings` that differs from a run's config.yaml and matters."""
    old, new = flatten(YAML(typ="safe").load(file.read_text(encoding="utf-8"))), flatten(settings)
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return [(key, old.get(key), new.get(key)) for key in keys if not _may_differ(key)]


def inside(key: str, other: str) -> bool:
    """Whether a dotted key is `other` or stands below it."""
    return key == other or key.startswith(f"{other}.")


def anew(settings: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """`KEY=VALUE` for every value of `settings` that may differ and that one of `overrides` is about."""
    keys = [override.partition("=")[0] for override in overrides]
    found = []
    for free in (free for free in MAY_DIFFER if any(inside(free, key) or inside(key, free) for key in keys)):
        *sections, last = free.split(".")
        node: Any = settings
        for section in sections:
            node = node.get(section) if isinstance(node, Mapping) else None
        if isinstance(node, Mapping) and last in node:
            found.append(f"{free}={json.dumps(node[last])}")
    return found


def _may_differ(key: str) -> bool:
    return any(inside(key, free) for free in MAY_DIFFER)
