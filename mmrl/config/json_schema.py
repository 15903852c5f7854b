"""The JSON Schema of a config: the typed sections, and for every component the options of each built-in name."""

from __future__ import annotations

from typing import Any

from mmrl import components
from mmrl.config.places import BLOCKS, PLACES
from mmrl.config.schema import Config


def json_schema() -> dict[str, Any]:
    """Draft 2020-12 schema; names outside the table (your own classes) pass with any options."""
    schema = Config.model_json_schema()
    _make_optional(schema)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "mmrl config"
    definitions = schema["$defs"]
    sections = list(definitions)
    for kind in sorted(set(PLACES.values())):
        definitions[f"component_{kind}"] = _component(kind, definitions)
    for definition in (schema, *(definitions[name] for name in sections)):
        for key, node in definition.get("properties", {}).items():
            if key in PLACES:
                _replace(node, f"#/$defs/component_{PLACES[key]}")
            elif key in BLOCKS:
                definition["properties"][key] = _block(BLOCKS[key], definitions)
    schema["properties"]["extends"] = {
        "description": "Base config(s) by path or shipped name; this file's values replace theirs.",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    stages = schema["properties"]["stages"]["additionalProperties"]
    del stages["discriminator"]
    stages["anyOf"] = [*stages.pop("oneOf"), {"type": "null"}]  # a part of a stage may fit both kinds; null removes one
    for section in ("RLStage", "DirectStage", "EvaluationSection"):
        rewards = definitions[section]["properties"]["rewards"]
        rewards["additionalProperties"] = {"anyOf": [rewards["additionalProperties"], {"type": "null"}]}
    return schema


def _make_optional(node: Any) -> None:
    """Nothing is required: a file that extends another leaves out what stands in the base."""
    if isinstance(node, dict):
        if isinstance(node.get("required"), list):  # not a property of that name
            del node["required"]
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            _make_optional(value)


def _component(kind: str, definitions: dict[str, Any]) -> dict[str, Any]:
    known = components.names(kind)
    options = []
    for name in known:
        found = components.resolve(kind, name)
        one = found.model_json_schema(ref_template=f"#/$defs/{kind}_{name}_{{model}}")
        _make_optional(one)
        for inner, definition in one.pop("$defs", {}).items():
            definitions[f"{kind}_{name}_{inner}"] = definition
        one["properties"] = {"name": {"const": name}, **one.get("properties", {})}
        if kind == "reward":
            used = definitions["RewardSpec"]["properties"]
            one["properties"] |= {key: node for key, node in used.items() if key != "name"}
        one["required"] = ["name"]  # says which options there are
        options.append(one)
    own = {
        "type": "object",
        "properties": {"name": {"type": "string", "not": {"enum": known}}},
        "required": ["name"],
        "description": f"Your own {kind}: package.module:Name or path/to/file.py:Name",
    }
    return {"anyOf": [*options, own]}


def _block(attribute: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """Any of the types that the built-in policies have for a block."""
    types = {getattr(components.resolve("policy", name), attribute) for name in components.table("policy")}
    options = []
    for found in sorted(types, key=lambda t: t.__name__):
        one = found.model_json_schema(ref_template=f"#/$defs/{found.__name__}_{{model}}")
        _make_optional(one)
        for inner, definition in one.pop("$defs", {}).items():
            definitions[f"{found.__name__}_{inner}"] = definition
        options.append(one)
    return {"anyOf": options}


def _replace(node: dict[str, Any], target: str) -> None:
    """Point every reference to the untyped Spec below `node` at the typed component."""
    if node.get("$ref", "").endswith(("/Spec", "/RewardSpec")):
        node["$ref"] = target
    for value in node.values():
        if isinstance(value, dict):
            _replace(value, target)
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, dict):
                    _replace(item, target)
