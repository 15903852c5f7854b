"""What a config can name, with one line about each: the data behind `mmrl list`."""

from __future__ import annotations

import difflib
import inspect
import itertools
import re
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML

from mmrl import components
from mmrl.config.source import shipped
from mmrl.errors import UserError

SHIPPED_KINDS = ("configs", "methods")


def catalogue(kind: str | None = None) -> dict[str, list[dict[str, Any]]]:
    """Kind -> rows. Raises UserError for an unknown kind, naming the nearest."""
    kinds = [*components.kinds(), *SHIPPED_KINDS] if kind is None else [_known(kind)]
    return {name: _shipped(name) if name in SHIPPED_KINDS else _components(name) for name in kinds}


def about(kind: str, name: str) -> dict[str, Any]:
    """One component, built in or by its path: `about` (its whole docstring), what is listed of its kind, and `options`, a row for each
    with its type, default and meaning. Raises UserError for an unknown kind or name."""
    kind = _known(kind)
    if kind in SHIPPED_KINDS:
        raise UserError(f"'{name}' is no component; {kind} are files: see `mmrl check {name}`")
    found = components.resolve(kind, name)
    options = _options(found) if hasattr(found, "model_fields") else []
    return {"name": name, **_facts(kind, found), "about": inspect.getdoc(found) or "", "options": options}


def _options(model: type[BaseModel], under: str = "") -> list[dict[str, str]]:
    """A row for each option; below one that is a model, or a list of them (then with N in their names), those of the model."""
    rows = []
    for key, field in model.model_fields.items():
        what = " ".join(_meaning(model, key).split())
        rows.append({"option": under + key, "type": _type(field), "default": _default(field), "what": what})
        if not under:
            place = f"{key}.N." if get_origin(field.annotation) in (list, tuple) else f"{key}."
            for one in (field.annotation, *get_args(field.annotation)):
                if isinstance(one, type) and issubclass(one, BaseModel):
                    rows += _options(one, place)
    return rows


def _meaning(model: type[BaseModel], key: str) -> str:
    """The description of a field, or of the nearest base's that it takes the place of."""
    fields = [getattr(one, "model_fields", {}).get(key) for one in model.__mro__]
    return next((field.description for field in fields if field is not None and field.description), "")


def _known(kind: str) -> str:
    """The kind, as the tables spell it."""
    known = [*components.kinds(), *SHIPPED_KINDS]
    singular = kind if kind in known else next((k for k in known if f"{k}s" == kind), None)
    singular = singular or {"losses": "surrogate", "models": "policy"}.get(kind)
    if singular is None:
        near = difflib.get_close_matches(kind, known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise UserError(f"unknown kind '{kind}'{hint} (kinds: {', '.join(known)})")
    return singular


def _components(kind: str) -> list[dict[str, Any]]:
    rows = []
    for name in components.names(kind):
        found = components.resolve(kind, name)
        options = [
            key if field.is_required() else f"{key}={_default(field)}"
            for key, field in getattr(found, "model_fields", {}).items()
        ]
        what = {"what": _paragraph(inspect.getdoc(found) or ""), "options": ", ".join(options)}
        rows.append({"name": name, **_facts(kind, found), **what, "class": components.table(kind)[name]})
    return rows


def _facts(kind: str, found: Any) -> dict[str, str]:
    """What is said of a kind beside names and options."""
    if kind != "reward" or not hasattr(found, "scope"):
        return {}
    path = found.model_fields.get("path")
    return {
        "scope": found.scope,
        "needs": ", ".join(found.needs) or found.takes,
        "range": _interval(*found.range),
        "better": "higher" if found.higher_is_better else "lower",
        "licence": found.licence if isinstance(found.licence, str) else "as the server says",
        "checkpoint": "" if path is None or path.is_required() else str(path.default or ""),
    }


def _default(field: FieldInfo) -> str:
    """As a config writes it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))


def _type(field: FieldInfo) -> str:
    """The annotation without the modules of its names, and the bounds behind it."""
    name = re.sub(r"(?<![\w.'])(?:\w+\.)+(?=\w)", "", inspect.formatannotation(field.annotation))
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = [
        f"{sign} {getattr(one, key):g}" for one in field.metadata for key, sign in signs.items() if hasattr(one, key)
    ]
    return ", ".join([name, *bounds])


def _paragraph(text: str) -> str:
    """The first paragraph in one line."""
    return " ".join(text.split("\n\n")[0].split())


def _interval(low: float | None, high: float | None) -> str:
    left = "(-∞" if low is None else f"[{low:g}"
    return f"{left}, {'∞)' if high is None else f'{high:g}]'}"


def _shipped(kind: str) -> list[dict[str, Any]]:
    rows = []
    for name, path in shipped().items():
        text = path.read_text(encoding="utf-8")
        tree = YAML(typ="safe").load(text)
        if kind == "configs":
            head = itertools.takewhile(lambda line: line.startswith("#") and line.strip("# "), text.splitlines())
            rows.append({"name": name, "what": " ".join(line.strip("# ") for line in head)})
        elif "method" in tree:
            method = tree["method"]
            rows.append(
                {
                    "name": method["name"],
                    "kind": method["kind"],
                    "family": method["family"],
                    "config": name,
                    "paper": method["paper"],
                }
            )
    return rows
