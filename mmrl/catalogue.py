"""What a config can name, with one line about each: the data behind `mmrl list`."""

from __future__ import annotations

import difflib
import inspect
import itertools
from typing import Any

from ruamel.yaml import YAML

from mmrl import components
from mmrl.config.source import shipped
from mmrl.errors import UserError

SHIPPED_KINDS = ("configs", "methods")


def catalogue(kind: str | None = None) -> dict[str, list[dict[str, Any]]]:
    """Kind -> rows. Raises UserError for an unknown kind, naming the nearest."""
    known = [*components.kinds(), *SHIPPED_KINDS]
    if kind is not None:
        singular = kind if kind in known else next((k for k in known if f"{k}s" == kind), None)
        singular = singular or {"losses": "surrogate", "models": "policy"}.get(kind)
        if singular is None:
            near = difflib.get_close_matches(kind, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(f"unknown kind '{kind}'{hint} (kinds: {', '.join(known)})")
        known = [singular]
    return {name: _shipped(name) if name in SHIPPED_KINDS else _components(name) for name in known}


def _components(kind: str) -> list[dict[str, Any]]:
    rows = []
    for name in components.names(kind):
        found = components.resolve(kind, name)
        options = [
            f"{key}={field.get_default(call_default_factory=True)!r}" if not field.is_required() else key
            for key, field in getattr(found, "model_fields", {}).items()
        ]
        row = {"name": name}
        if kind == "reward":
            path = found.model_fields.get("path")
            row |= {
                "scope": found.scope,
                "needs": ", ".join(found.needs) or found.takes,
                "range": _interval(*found.range),
                "better": "higher" if found.higher_is_better else "lower",
                "licence": found.licence if isinstance(found.licence, str) else "as the server says",
                "checkpoint": "" if path is None or path.is_required() else str(path.default or ""),
            }
        row |= {"what": _paragraph(inspect.getdoc(found) or ""), "options": ", ".join(options)}
        rows.append(row | {"class": components.table(kind)[name]})
    return rows


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
