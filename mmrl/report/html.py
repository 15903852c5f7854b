"""The report of a run: one self-contained HTML file made from the run's folder and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from mmrl._version import __version__
from mmrl.folder import RunFolder, write_text
from mmrl.report.breakdown import Breakdown, breakdowns
from mmrl.report.change import changes, in_unit
from mmrl.report.data import RunData, mapping, read_run
from mmrl.report.facts import failures, seconds, stage_rows, status, subtitle, title
from mmrl.report.panels import constants, panels
from mmrl.report.pictures import comparisons, strips
from mmrl.report.plot import BARS, SERIES, draw, draw_bars


def write_report(folder: RunFolder) -> Path:
    """Write `report.html` into the run's folder, for a finished, a running or a stopped run. Returns its path."""
    write_text(folder.report, render(read_run(folder)))
    return folder.report


def render(data: RunData) -> str:
    """The page as text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["seconds"] = seconds
    template = environment.from_string((files("mmrl.report") / "report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        version=__version__,
        title=title(data),
        subtitle=subtitle(data),
        status=status(data),
        notes=data.notes,
        changes=changes(data),
        breakdowns=[_bars(found) for found in breakdowns(data)],
        comparisons=comparisons(data),
        strips=strips(data),
        curves=[_curves(data, index) for index in range(len(data.stages))],
        stages=stage_rows(data),
        failures=failures(data),
        config=data.config_text,
        provenance=list(_flat(data.provenance)),
        started=str(data.provenance.get("started", "")),
    )


def _bars(found: Breakdown) -> dict[str, Any]:
    """A chart for the template, its legend in the order of its bars."""
    seen = {name for name, _, _ in BARS if any(math.isfinite(getattr(row, name)) for row in found.rows)}
    named = {"before": "before", "after": "after", "blind": "after, blind" if "after" in seen else "blind"}
    return {
        "found": found,
        "legend": [(named[name], colour, alpha) for name, colour, alpha in BARS if name in seen],
        "blind": "blind" in seen,
        "chance": any(math.isfinite(row.chance) for row in found.rows),
        "svg": Markup(draw_bars(found)),
    }


def _curves(data: RunData, index: int) -> dict[str, Any]:
    """A stage's panels for the template: titles and legends are text of the page, the drawing is SVG."""
    stage = data.stages[index]
    shown = [
        {
            "title": panel.title,
            "note": panel.note,
            "wide": panel.wide,
            "legend": [
                (curve.label, number % SERIES, "dotted" if curve.guide else "hollow" if curve.mark else "")
                for number, curve in enumerate(panel.curves)
            ],
            "svg": Markup(draw(panel)),
        }
        for panel in panels(stage, data.held_out, lambda name: in_unit(data, name))
    ]
    return {"name": stage.name, "kind": stage.kind, "panels": shown, "constants": constants(stage)}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if key == "packages" and isinstance(value, Mapping):
            yield name, ", ".join(f"{package} {version}" for package, version in value.items())
        elif isinstance(value, Mapping) and value:
            yield from _flat(mapping(value), f"{name}.")
        elif isinstance(value, list):
            whole = [", ".join(f"{k} {v}" for k, v in entry.items()) if isinstance(entry, dict) else str(entry)
                     for entry in value]  # fmt: skip
            yield name, (" " if key == "command" else "; ").join(whole) or "none"
        else:
            yield name, "none" if value is None else str(value)
